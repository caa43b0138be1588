-- One row a fact of a slate: the impression of each of its nine items, and the purchase of those that were bought. A
-- slate that cannot be used is one row with its reason.
with parsed as (
    select
        $log || '-' || trim(session_id) as session,
        trim(session_id) as number,
        try_cast(sequence_id as integer) as page,
        try_cast(timestamp as bigint) as second,
        string_split(exposed_items, ',') as items,
        string_split(user_feedback, ',') as bought,
        line,
        raw,
        fault
    from raw_rows
),
judged as (
    select
        *,
        case
            when fault is not null then fault
            when number = '' then 'blank session id'
            when page is null or page < 1 then 'sequence_id is not a number from 1'
            when second is null then 'unreadable time stamp'
            when second not between 0 and 9_999_999_999 then 'time stamp is not in seconds'
            when len(items) <> 9 then 'exposed_items is not a list of 9'
            when len(bought) <> 9 then 'user_feedback is not a list of 9'
            when len(list_filter(items, lambda id: trim(id) = '')) > 0 then 'exposed_items holds a blank id'
            when len(list_filter(bought, lambda flag: flag not in ('0', '1'))) > 0 then 'user_feedback is not of 0 and 1'
        end as reason
    from parsed
),
slots as (
    select
        session,
        page,
        second,
        unnest(if(reason is null, items, [null])) as item_id,
        unnest(if(reason is null, bought, [null])) as bought,
        unnest(if(reason is null, range(9), [null])) as position,
        line,
        raw,
        reason
    from judged
),
facts as (
    select
        * replace (trim(item_id) as item_id),
        unnest(if(bought = '1', ['impression', 'purchase'], ['impression'])) as event_type
    from slots
)
select
    session as user_id,
    item_id,
    to_timestamp(if(reason is null, second, null)) as event_ts,
    event_type::event_type as event_type,
    if(event_type = 'purchase', item_info.price, null) as value,
    session as session_id,
    session || '-' || page as request_id,
    position::integer as position,
    facts.line,
    facts.raw,
    facts.reason
from facts
left join item_info using (item_id)
