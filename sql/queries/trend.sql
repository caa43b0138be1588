-- How the main figures moved from one published leaderboard to the next, and which of data, code and settings had
-- changed in between: the history of the experiment, newest first.
with changes as (
    select
        *,
        lag(value) over earlier as previous,
        concat_ws(
            ', ',
            if(data_hash <> lag(data_hash) over earlier, 'data', null),
            if(code_hash <> lag(code_hash) over earlier, 'code', null),
            if(config_hash <> lag(config_hash) over earlier, 'settings', null)
        ) as changed
    from history
    window earlier as (partition by agent, leg, setting, metric order by published_at, leaderboard)
)
select
    published_at,
    agent,
    leg,
    setting,
    metric,
    value,
    ci_low,
    ci_high,
    n,
    value - previous as change,
    changed,
    commit,
    leaderboard
from changes
order by published_at desc, leg desc, setting, metric, value desc nulls last, agent
