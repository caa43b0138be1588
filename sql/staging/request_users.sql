-- The users who act on one request both in the partition and near it: a showing's credit depends on when its visit began.
with inside as (
    select distinct user_id, request_id
    from events
    where event_ts >= $start and event_ts < $end and request_id is not null
),
near as (
    select user_id, request_id
    from events
    where (event_ts >= $read_from and event_ts < $start or event_ts >= $end and event_ts < $read_until)
        and request_id is not null
)
select distinct user_id from near semi join inside using (user_id, request_id)
