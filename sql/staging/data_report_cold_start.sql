-- What the last fifth of the sessions, from $cut on, meets for the first time: users without an earlier session, items
-- that were not shown before. No rows where the log has no earlier session.
with user_figures as (
    select
        count(*) filter (where earlier = 0) / nullif(count(*), 0) as cold_users_share,
        sum(sessions) filter (where earlier = 0) / nullif(sum(sessions - earlier), 0) as cold_sessions_share
    from user_totals
    where sessions > earlier
),
item_figures as (
    select
        count(*) filter (where earlier = 0) / nullif(count(*), 0) as cold_items_share,
        sum(impressions) filter (where earlier = 0) / nullif(sum(impressions - earlier), 0) as cold_impressions_share
    from item_totals
    where impressions > earlier
),
figures as (
    select coalesce(columns(*), 0)::double from user_figures, item_figures
)
select
    'cold_start' as section,
    'cut_off' as name,
    ($cut::timestamptz at time zone 'UTC')::varchar as bucket,
    null::double as value
where $cut is not null
union all
select 'cold_start', name, null, value
from figures
unpivot (value for name in (*))
where $cut is not null
