-- The events of one raw file under their id, with the reason why one cannot be used whatever its source thought, or null.
select
    key64(to_json([
        user_id, item_id, epoch_us(event_ts)::varchar, event_type, value::varchar,
        session_id, request_id, position::varchar, propensity::varchar
    ])::varchar) as event_id,
    user_id,
    item_id,
    event_ts,
    event_type,
    value,
    session_id,
    request_id,
    position,
    propensity,
    $source as source,
    (event_ts at time zone 'UTC')::date as event_date,
    line,
    raw,
    case
        when coalesce(trim(user_id), '') = '' then 'blank user id'
        when coalesce(trim(item_id), '') = '' then 'blank item id'
        when event_ts is null then 'no time stamp'
        when event_ts < $start or event_ts >= $end then $outside
        when event_type is null or not list_contains($event_types::varchar[], event_type) then 'unknown event type'
        when not isfinite(value) then 'value is not a finite number'
        when not propensity > 0 or propensity > 1.000001 then 'propensity is not in (0, 1]'
    end as reason
from parsed_events
