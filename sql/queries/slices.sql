-- Re-ranking by slice: who is served well. Seeds are averaged first; intervals are the normal approximation with a
-- standard error clustered by user, as in paired_difference.
-- Sessions are sliced by user (new to the training window, or known from it) and by length; their metric is
-- ndcg_reward_20, and n counts sessions.
-- Items are sliced by popularity and by category. A session with two positives belongs to two such slices, so here n
-- counts positive items and the metric is of the item: auc, the share of the session's skipped items that are ranked
-- below it. Unlike its reciprocal rank or its gain, that depends neither on the session's length nor on where its other
-- positives are ranked, and a random order has 0.5 in every slice: slices are comparable.
-- Deciles of popularity have about as many positive items each, 1 = shown least in the training window (items of as many
-- showings stay together). Categories are the ten with most positive items.
with session_means as (
    select agent, mode, session_id, user_key, max(candidates) as candidates, avg(ndcg_reward_20) as ndcg_reward_20
    from rerank
    where status = 'scored'
    group by agent, mode, session_id, user_key
),
sliced_sessions as (
    select
        session_means.*,
        coalesce(users.train_sessions, 0) > 0 as returns,
        case when candidates <= 20 then 1 when candidates <= 50 then 2 else 3 end as length_order
    from session_means
    left join users on users.user_key = session_means.user_key
),
ranked_positives as (
    select
        agent,
        mode,
        seed,
        session_id,
        item_key,
        rank,
        row_number() over (partition by agent, mode, seed, session_id order by rank) as place -- among the positives
    from rankings
    where feedback > 1 -- 1 = skip
),
item_means as (
    select
        agent,
        mode,
        session_id,
        item_key,
        user_key,
        avg(1 - (rank - place) / (candidates - positives)) as auc
    from ranked_positives
    inner join rerank using (agent, mode, seed, session_id)
    where status = 'scored'
    group by agent, mode, session_id, item_key, user_key
),
found_items as (
    select
        counted.item_key,
        counted.n,
        coalesce(items.train_impressions, 0) as showings,
        coalesce(items.category, 'unknown') as category
    from (select item_key, count(*) as n from item_means group by item_key) as counted
    left join items on items.item_key = counted.item_key
),
deciles as (
    -- Items of as many showings lie around the middle of their share.
    select
        item_key,
        showings,
        1 + floor(10 * (sum(n) over (order by showings) - sum(n) over (partition by showings) / 2) / sum(n) over ())
            as decile
    from found_items
    where showings > 0
),
popularity_slices as (
    select
        item_key,
        decile as slice_order,
        concat(
            decile::integer, ': ',
            concat_ws(
                '–', min(showings) over same_decile, nullif(max(showings) over same_decile, min(showings) over same_decile)
            ),
            ' showings'
        ) as slice
    from deciles
    window same_decile as (partition by decile)
    union all
    select item_key, 0 as slice_order, 'not in training' as slice
    from found_items
    where showings = 0
),
top_categories as (
    select category, row_number() over (order by sum(n) desc, category) as place
    from found_items
    where category <> 'unknown'
    group by category
    order by place
    limit 10
),
category_slices as (
    select
        found_items.item_key,
        coalesce(top_categories.place, if(found_items.category = 'unknown', 12, 11)) as slice_order,
        coalesce(top_categories.category, if(found_items.category = 'unknown', 'unknown', 'other')) as slice
    from found_items
    left join top_categories on top_categories.category = found_items.category
    where exists (from top_categories)
),
measured as (
    select
        agent,
        mode,
        user_key,
        1 as dimension_order,
        'user' as dimension,
        returns::integer as slice_order,
        if(returns, 'returning', 'new') as slice,
        ndcg_reward_20 as value
    from sliced_sessions
    union all
    select
        agent,
        mode,
        user_key,
        2 as dimension_order,
        'session length' as dimension,
        length_order as slice_order,
        ['1-20 items', '21-50 items', 'over 50 items'][length_order] as slice,
        ndcg_reward_20 as value
    from sliced_sessions
    union all
    select agent, mode, user_key, 3 as dimension_order, 'item popularity' as dimension, slice_order, slice, auc as value
    from item_means
    inner join popularity_slices on popularity_slices.item_key = item_means.item_key
    union all
    select agent, mode, user_key, 4 as dimension_order, 'category' as dimension, slice_order, slice, auc as value
    from item_means
    inner join category_slices on category_slices.item_key = item_means.item_key
),
centred as (
    select *, value - avg(value) over (partition by agent, mode, dimension, slice_order) as residual
    from measured
),
by_user as (
    select
        agent,
        mode,
        dimension_order,
        dimension,
        slice_order,
        slice,
        user_key,
        count(*) as n,
        sum(value) as value,
        sum(residual) as residual
    from centred
    group by agent, mode, dimension_order, dimension, slice_order, slice, user_key
),
totals as (
    select
        agent,
        mode,
        dimension_order,
        dimension,
        slice_order,
        slice,
        if(dimension_order < 3, 'ndcg_reward_20', 'auc') as metric,
        sum(value) / sum(n) as value,
        -- One user gives no variance between users, hence null.
        sqrt(sum(residual * residual) * count(*) / nullif(count(*) - 1, 0)) / sum(n) as standard_error,
        sum(n)::bigint as n,
        count(*) as users
    from by_user
    group by agent, mode, dimension_order, dimension, slice_order, slice
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
