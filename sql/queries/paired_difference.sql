-- $a minus $b on the sessions (or users) that both have, seeds averaged first.
-- The interval is the normal approximation with a standard error clustered by user; the leaderboard's is a bootstrap.
with measured as (
    select leg, setting, metric, agent, coalesce(session_id, user_key) as unit, user_key, value
    from unit_scores
    where
        agent in ($a, $b)
        and (leg, metric) in (
            ('rerank', 'ndcg_reward_20'), ('rerank', 'map'), ('rollout', 'return'), ('rollout', 'depth')
        )
),
paired as (
    select
        first_agent.leg,
        first_agent.setting,
        first_agent.metric,
        first_agent.user_key,
        first_agent.value as value_a,
        second_agent.value as value_b,
        first_agent.value - second_agent.value as difference
    from measured as first_agent
    inner join measured as second_agent using (leg, setting, metric, unit, user_key)
    where first_agent.agent = $a and second_agent.agent = $b
),
centred as (
    select *, difference - avg(difference) over (partition by leg, setting, metric) as residual
    from paired
),
by_user as (
    select
        leg,
        setting,
        metric,
        count(*) as n,
        sum(value_a) as sum_a,
        sum(value_b) as sum_b,
        sum(residual) as residual,
        count_if(difference > 0) as wins,
        count_if(difference < 0) as losses
    from centred
    group by leg, setting, metric, user_key
),
totals as (
    select
        leg,
        setting,
        metric,
        sum(n)::bigint as n,
        count(*) as users,
        sum(sum_a) / sum(n) as value_a,
        sum(sum_b) / sum(n) as value_b,
        sum(wins) / sum(n) as share_better,
        sum(losses) / sum(n) as share_worse,
        -- One user gives no variance between users, hence null.
        sqrt(sum(residual * residual) * count(*) / nullif(count(*) - 1, 0)) / sum(n) as standard_error
    from by_user
    group by leg, setting, metric
)
select
    leg,
    setting,
    metric,
    value_a,
    value_b,
    value_a - value_b as difference,
    value_a - value_b - 1.959964 * standard_error as difference_low,
    value_a - value_b + 1.959964 * standard_error as difference_high,
    standard_error,
    share_better,
    share_worse,
    n,
    users
from totals
order by leg desc, setting, metric
