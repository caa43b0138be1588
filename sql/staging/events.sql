-- The facts of one partition, each once: the same fact twice has the same columns.
select distinct
    event_id,
    user_id,
    item_id,
    event_ts,
    event_type,
    value,
    session_id,
    request_id,
    position,
    propensity,
    source,
    event_date
from staged
where event_ts >= $start and event_ts < $end
order by user_id, event_ts, event_id
