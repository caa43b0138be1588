-- One row a fact of anybody's log, its numbers read.
select
    user_id,
    item_id,
    event_ts,
    event_type,
    try_cast(value as double) as value,
    session_id,
    request_id,
    try_cast(position as integer) as position,
    try_cast(propensity as double) as propensity,
    category,
    brand,
    shop,
    line,
    raw,
    case
        when fault is not null then fault
        when value is not null and try_cast(value as double) is null then 'value is not a number'
        when position is not null and coalesce(try_cast(position as integer) <> try_cast(position as double), true)
            then 'position is not a whole number'
        when propensity is not null and try_cast(propensity as double) is null then 'propensity is not a number'
    end as reason
from mapped_facts
