-- The log over time, in the periods of the experiment: events by type, impressions by feedback, sessions, and the users
-- and items with events. A user or item is new in its first period.
with events_by_period as (
    select 'events_by_period' as section, event_type as name, date_trunc($grain, event_date) as period, sum(events) as n
    from event_counts
    group by all
),
feedback_by_period as (
    select
        'feedback_by_period' as section, feedback as name, date_trunc($grain, impression_date) as period,
        sum(impressions) as n
    from impression_counts
    group by all
),
session_days as (
    select
        make_timestamp(epoch_us(start_ts))::date as start_date,
        count(*) filter (where clicks > 0) as with_positive,
        count(*) filter (where clicks = 0) as without_positive
    from sessions
    group by start_date
),
sessions_by_period as (
    select 'sessions_by_period' as section, name, date_trunc($grain, start_date) as period, sum(n) as n
    from session_days
    unpivot (n for name in (with_positive, without_positive))
    group by all
),
firsts as (
    select entity, key, min(period) as period from active group by entity, key
),
new_entities as (
    select entity, period, count(*) as new from firsts group by entity, period
),
active_entities as (
    select entity, period, count(*) as active from active group by entity, period
),
entities_by_period as (
    select entity || '_by_period' as section, name, period, n
    from (
        select entity, period, coalesce(new, 0) as new, active - coalesce(new, 0) as known
        from active_entities
        left join new_entities using (entity, period)
    )
    unpivot (n for name in (new, known))
),
joined as (
    select * from events_by_period
    union all
    select * from feedback_by_period
    union all
    select * from sessions_by_period
    union all
    select * from entities_by_period
)
select section, name, strftime(period, '%Y-%m-%d') as bucket, n::double as value
from joined
order by
    list_position(
        ['events_by_period', 'feedback_by_period', 'sessions_by_period', 'users_by_period', 'items_by_period'], section
    ),
    if(section in ('events_by_period', 'feedback_by_period'), sum(n) over (partition by section, name), 0) desc,
    name,
    period
