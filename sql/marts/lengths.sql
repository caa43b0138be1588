-- One measured length of a session, a user or an item (measure), in whole numbers: those that the data report's spreads,
-- popularity and cold start are about. earlier is how much of it was before the cut-off of the cold start.
with cut as (
    select (max(bucket) || '+00')::timestamptz as cut_off
    from data_report
    where section = 'cold_start' and name = 'cut_off'
),
of_users as (
    select
        user_key,
        count(*) as sessions,
        count(*) filter (where start_ts < cut_off) as earlier_sessions,
        sum(impressions) as impressions,
        sum(impressions) filter (where start_ts < cut_off) as earlier_impressions
    from sessions, cut
    group by user_key
),
of_items as (
    select
        item_id,
        count(*) as impressions,
        count(*) filter (where impression_ts < cut_off) as earlier_impressions,
        count(*) filter (where feedback <> 'skip') as positives,
        count(*) filter (where feedback <> 'skip' and impression_ts < cut_off) as earlier_positives
    from impressions, cut
    group by item_id
)
select
    unnest(['impressions_of_a_session', 'pages_of_a_session', 'minutes_of_a_session']) as measure,
    session_id,
    user_key,
    null::varchar as item_id,
    unnest([impressions, pages, (epoch_us(end_ts) - epoch_us(start_ts)) // 60_000_000])::bigint as length,
    null::bigint as earlier
from sessions
union all
select
    unnest(['sessions_of_a_user', 'impressions_of_a_user']),
    null,
    user_key,
    null,
    unnest([sessions, impressions]),
    unnest([earlier_sessions, coalesce(earlier_impressions, 0)])
from of_users
union all
select
    unnest(['impressions_of_an_item', 'positives_of_an_item']),
    null,
    null,
    item_id,
    unnest([impressions, positives]),
    unnest([earlier_impressions, earlier_positives])
from of_items
