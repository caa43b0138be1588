-- One row a session that showed something. It ends with its last event or with the last feedback to what it showed.
with activity as (
    select session_id, max(event_ts) as last_ts, bool_or(cut_after) as capped
    from session_events
    group by session_id
),
outcomes as (
    select
        session_id, start_ts, user_id,
        max(known_ts) as known_ts,
        max(page) + 1 as pages,
        count(*) as impressions,
        count(*) filter (where code >= $click) as clicks,
        count(*) filter (where code = $purchase) as purchases,
        -- Decimals add up to the same sum in any order.
        sum(reward::decimal(18, 6)) as reward
    from impressions
    group by session_id, start_ts, user_id
)
select
    session_id, user_id, start_ts,
    greatest(last_ts, known_ts) as end_ts,
    pages, impressions, clicks, purchases, reward, capped
from outcomes
join activity using (session_id)
order by start_ts, session_id
