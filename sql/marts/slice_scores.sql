-- One row a re-ranked session, or a positive item of one, in each slice that it belongs to, seeds averaged.
-- Sessions are sliced by user (new to the training window, or known from it) and by length; their metric is
-- ndcg_reward_20. Items are sliced by popularity and by category. A session with two positives belongs to two such
-- slices, so the metric is of the item: auc, the share of the session's skipped items that are ranked below it. Unlike
-- its reciprocal rank or its gain, that depends neither on the session's length nor on where its other positives are
-- ranked, and a random order has 0.5 in every slice: slices are comparable.
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
sliced as (
    select item_key, 3 as dimension_order, 'item popularity' as dimension, slice_order, slice from popularity_slices
    union all
    select item_key, 4 as dimension_order, 'category' as dimension, slice_order, slice from category_slices
)
select
    agent,
    mode,
    session_id,
    null::bigint as item_key,
    user_key,
    1 as dimension_order,
    'user' as dimension,
    returns::integer as slice_order,
    if(returns, 'returning', 'new') as slice,
    'ndcg_reward_20' as metric,
    ndcg_reward_20 as value
from sliced_sessions
union all
select
    agent,
    mode,
    session_id,
    null::bigint as item_key,
    user_key,
    2 as dimension_order,
    'session length' as dimension,
    length_order as slice_order,
    ['1-20 items', '21-50 items', 'over 50 items'][length_order] as slice,
    'ndcg_reward_20' as metric,
    ndcg_reward_20 as value
from sliced_sessions
union all
select
    item_means.agent,
    item_means.mode,
    item_means.session_id,
    item_means.item_key,
    item_means.user_key,
    sliced.dimension_order,
    sliced.dimension,
    sliced.slice_order,
    sliced.slice,
    'auc' as metric,
    item_means.auc as value
from item_means
inner join sliced on sliced.item_key = item_means.item_key
