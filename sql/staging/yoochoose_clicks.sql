-- One row a line of yoochoose-clicks.dat. The context is S (a special offer), 0 (unknown), 1 to 12 (a category) or a brand.
with parsed as (
    select
        *,
        -- the hyphen keeps out words that are time stamps too, as infinity
        try_cast(if(time[5] = '-', time, null) as timestamptz) as event_ts,
        try_cast(context as ubigint) as code
    from raw_rows
)
select
    session_id as user_id,
    item_id,
    event_ts,
    'impression'::event_type as event_type,
    session_id,
    if(context = 'S' or code between 1 and 12, context, null) as category,
    if(code > 12, context, null) as brand,
    line,
    raw,
    case
        when fault is not null then fault
        when event_ts is null then 'unreadable time stamp'
        when code is null and context not in ('S', '') then 'unknown category'
    end as reason
from parsed
