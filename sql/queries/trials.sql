-- What tuning tried: a row a trial of an agent's grid, with its best validation score and what it cost.
-- The settings with the best score are those that all seeds were trained with.
with logged as (
    select
        agent,
        seed,
        step,
        value,
        regexp_extract(metric, '^trial (.*): ([^:]*)$', ['trial', 'metric']) as parsed
    from training_log
    where metric like 'trial %'
),
trials as (
    select
        agent,
        parsed.trial as trial,
        max(value) filter (where parsed.metric = 'best_validation') as validation,
        max(step) filter (where parsed.metric = 'best_validation') as best_step,
        max(step) filter (where parsed.metric = 'seconds') as steps,
        max(value) filter (where parsed.metric = 'seconds') as seconds
    from logged
    group by agent, trial
)
select
    agent,
    trial,
    validation,
    best_step,
    steps,
    seconds,
    validation = max(validation) over (partition by agent) as chosen
from trials
order by agent, validation desc, trial
