-- The events of one day and type, and how many of them fill each column that a log may leave out.
select
    event_date,
    event_type,
    count(*) as events,
    min(event_ts) as first_ts,
    max(event_ts) as last_ts,
    count(session_id) as session_id,
    count(request_id) as request_id,
    count(position) as position,
    count(propensity) as propensity,
    count(value) as value
from events
group by event_date, event_type
