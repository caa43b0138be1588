-- Re-ranking by slice: who is served well. Intervals are the normal approximation with a standard error clustered by
-- user, as in paired_difference; n counts what slice_scores has a row of: sessions, or positive items.
with centred as (
    select *, value - avg(value) over (partition by agent, mode, dimension, slice_order) as residual
    from slice_scores
),
by_user as (
    select
        agent,
        mode,
        dimension_order,
        dimension,
        slice_order,
        slice,
        metric,
        user_key,
        count(*) as n,
        sum(value) as value,
        sum(residual) as residual
    from centred
    group by agent, mode, dimension_order, dimension, slice_order, slice, metric, user_key
),
totals as (
    select
        agent,
        mode,
        dimension_order,
        dimension,
        slice_order,
        slice,
        metric,
        sum(value) / sum(n) as value,
        -- One user gives no variance between users, hence null.
        sqrt(sum(residual * residual) * count(*) / nullif(count(*) - 1, 0)) / sum(n) as standard_error,
        sum(n)::bigint as n,
        count(*) as users
    from by_user
    group by agent, mode, dimension_order, dimension, slice_order, slice, metric
)
select
    agent,
    mode,
    dimension,
    slice,
    metric,
    value,
    value - 1.959964 * standard_error as ci_low,
    value + 1.959964 * standard_error as ci_high,
    if(metric = 'ndcg_reward_20', value, null) as ndcg_reward_20,
    n,
    users
from totals
order by dimension_order, slice_order, mode, value desc, agent
