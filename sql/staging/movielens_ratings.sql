-- One row a line of a ratings file.
with trimmed as (
    select
        trim(user_id) as user_id,
        trim(item_id) as item_id,
        try_cast(stars as double) as stars,
        trim(seconds, chr(13) || chr(9) || ' ') as seconds,
        line,
        raw,
        fault
    from raw_rows
),
timed as (
    select
        *,
        to_timestamp(if(regexp_full_match(seconds, '\d{1,10}'), try_cast(seconds as bigint), null)) as event_ts
    from trimmed
)
select
    user_id,
    item_id,
    event_ts,
    'rating'::event_type as event_type,
    stars as value,
    line,
    raw,
    case
        when fault is not null then fault
        when user_id = '' then 'blank user id'
        when item_id = '' then 'blank movie id'
        when not regexp_full_match(user_id, '\d+') then 'user id is not a whole number'
        when not regexp_full_match(item_id, '\d+') then 'movie id is not a whole number'
        when stars is null then 'rating is not a number'
        when not stars between 0.5 and 5 then 'rating is not between 0.5 and 5'
        when regexp_full_match(seconds, '\d{12,13}') then 'time stamp is in milliseconds instead of seconds'
        when event_ts is null then 'unreadable time stamp'
    end as reason
from timed
