-- The facts of one raw file under their id, with the reason why one cannot be used, or null. The id is a hash of the whole
-- fact but for what it says of its item.
select
    (hash(user_id, item_id, event_ts, event_type, value, session_id, request_id, position, propensity) >> 1)::bigint
        as event_id,
    user_id,
    item_id,
    event_ts,
    try_cast(event_type as event_type) as event_type,
    value,
    session_id,
    request_id,
    position,
    propensity,
    category,
    brand,
    shop,
    line,
    raw,
    case
        -- Nearly all rows pass here, at a tenth of what the single questions cost.
        when reason is null
            and user_id > ' ' and strlen(user_id) <= $longest_id
            and item_id > ' ' and strlen(item_id) <= $longest_id
            and event_ts >= $start and event_ts < $end
            and try_cast(event_type as event_type) is not null
            and value is null and propensity is null
            then null
        when reason is not null then reason
        when coalesce(trim(user_id), '') = '' then 'blank user id'
        when coalesce(trim(item_id), '') = '' then 'blank item id'
        when strlen(user_id) > $longest_id then 'user id is longer than ' || $longest_id || ' bytes'
        when strlen(item_id) > $longest_id then 'item id is longer than ' || $longest_id || ' bytes'
        when event_ts is null then 'no time stamp'
        when event_ts < $start or event_ts >= $end then $outside
        when event_type is null or try_cast(event_type as event_type) is null then 'unknown event type'
        when value is not null and not isfinite(value) then 'value is not a finite number'
        when value < 0 then 'value is negative'
        when propensity is not null and (not propensity > 0 or propensity > 1.000001) then 'propensity is not in (0, 1]'
    end as reason
from parsed_events
