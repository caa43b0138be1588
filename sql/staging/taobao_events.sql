-- One row a line of UserBehavior.csv.
with typed as (
    select
        *,
        try_cast(seconds as bigint) as second,
        case behaviour
            when 'pv' then 'impression'::event_type
            when 'fav' then 'favorite'::event_type
            when 'cart' then 'cart'::event_type
            when 'buy' then 'purchase'::event_type
        end as event_type
    from raw_rows
)
select
    user_id,
    item_id,
    to_timestamp(if(second between $first and $last, second, null)) as event_ts,
    event_type,
    category,
    line,
    raw,
    case
        when fault is not null then fault
        when event_type is null then 'unknown behaviour'
        when second is null then 'unreadable time stamp'
        when second not between -9_999_999_999 and 9_999_999_999 then 'time stamp is not in seconds'
        when second not between $first and $last then 'outside the experiment''s time range'
    end as reason
from typed
