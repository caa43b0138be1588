-- The share of each type's events that fill a column which a log may leave out.
with totals as (
    select
        event_type,
        sum(events) as events,
        sum(session_id) / sum(events) as session_id,
        sum(request_id) / sum(events) as request_id,
        sum(position) / sum(events) as position,
        sum(propensity) / sum(events) as propensity,
        sum(value) / sum(events) as value
    from event_counts
    group by event_type
)
select 'coverage' as section, name, event_type as bucket, share as value
from totals
unpivot (share for name in (session_id, request_id, position, propensity, value))
order by events desc, event_type, list_position(['session_id', 'request_id', 'position', 'propensity', 'value'], name)
