-- The events outside of a partition that decide its sessions: those of users with a visit that crosses its first or its
-- last moment, and of users who act on a request on both sides of one.
with before as (
    select event_id, user_id, item_id, event_ts, event_type, value, session_id, request_id, position, propensity
    from events
    where event_ts >= $read_from and event_ts < $start
        and user_id in (select user_id from visits_into union select user_id from request_users)
)
select * from before
union all
select event_id, user_id, item_id, event_ts, event_type, value, session_id, request_id, position, propensity
from events
where event_ts >= $end and event_ts < $read_until
    and user_id in (select user_id from visits_out union select user_id from request_users)
