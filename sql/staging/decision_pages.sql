-- One row a logged page of a split, of at most $pages pages in whole sessions: the state before it, its items by slot,
-- and what it could have shown with the ranker's logits, where the log says it (null elsewhere).
with sized as (
    select session_id, count(*) as pages from page_states where split = $split group by session_id
),
sampled as (
    select session_id
    from sized
    qualify sum(pages) over (order by md5_number_lower(session_id || ':' || $seed), session_id) <= $pages
),
shown as (
    select i.session_id, i.page, i.user_id, i.item_id, i.impression_ts, i."row" * $cols + i.col as slot, i.position
    from impressions as i
    semi join sampled using (session_id)
),
keys as (
    select session_id, page, min(impression_ts) as page_ts, list(key64(item_id) order by slot, position) as item_keys
    from shown
    group by session_id, page
),
requests as (
    select shown.session_id, shown.page, any_value(events.request_id) as request_id
    from shown
    join events
        on events.user_id = shown.user_id
        and events.item_id = shown.item_id
        and events.event_ts = shown.impression_ts
        and events.event_type = 'impression'
    where events.request_id is not null
    group by shown.session_id, shown.page
    -- The rest of a request that did not fit on one page was not drawn from the whole pool.
    qualify count(*) over (partition by any_value(events.request_id)) = 1
),
offered as (
    select
        requests.session_id,
        requests.page,
        unnest(pools.item_ids) as item_id,
        unnest(coalesce(pools.logits, list_transform(pools.item_ids, lambda x: null::double))) as logit,
        unnest(range(len(pools.item_ids))) as place
    from requests
    join pools using (request_id)
),
offers as (
    select
        offered.session_id,
        offered.page,
        list(coalesce(items.item, 0) order by offered.place) as pool_items,
        list(key64(offered.item_id) order by offered.place) as pool_keys,
        list(offered.logit order by offered.place) as pool_logits
    from offered
    left join items using (item_id)
    group by offered.session_id, offered.page
)
select
    state.*,
    key64(state.user_id) as user_key,
    keys.page_ts,
    datediff('hour', timestamptz 'epoch', keys.page_ts) as hour,
    keys.item_keys,
    offers.pool_items,
    offers.pool_keys,
    offers.pool_logits
from page_states as state
join keys on keys.session_id = state.session_id and keys.page = state.step
left join offers on offers.session_id = state.session_id and offers.page = state.step
order by state.session_id, state.step
