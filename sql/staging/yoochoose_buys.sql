-- One row a line of yoochoose-buys.dat. More than half of the prices are 0: unknown.
with parsed as (
    select
        *,
        try_cast(if(time[5] = '-', time, null) as timestamptz) as event_ts,
        try_cast(price as double) as paid
    from raw_rows
)
select
    session_id as user_id,
    item_id,
    event_ts,
    'purchase'::event_type as event_type,
    nullif(paid, 0) as value,
    session_id,
    line,
    raw,
    case
        when fault is not null then fault
        when event_ts is null then 'unreadable time stamp'
        when paid is null then 'price is not a number'
    end as reason
from parsed
