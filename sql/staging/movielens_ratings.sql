-- Every line of a ratings file, with the reason why it cannot be used, or null.
with decoded as (
    select line, raw as bytes, torn, try(decode(raw)) as text
    from lines
    where line > $header
),
split as (
    select
        line,
        bytes,
        torn,
        text,
        string_split(case when line = 1 then ltrim(text, chr(65279)) else text end, $separator) as fields
    from decoded
),
named as (
    select
        line,
        bytes,
        torn,
        text,
        len(fields) as columns,
        trim(fields[1]) as user_id,
        trim(fields[2]) as item_id,
        try_cast(fields[3] as double) as stars,
        trim(fields[4], chr(13) || chr(9) || ' ') as seconds
    from split
),
timed as (
    select
        *,
        case when regexp_full_match(seconds, '\d{1,10}') then to_timestamp(seconds::bigint) end as event_ts
    from named
)
select
    user_id,
    item_id,
    event_ts,
    'rating' as event_type,
    stars as value,
    null::varchar as session_id,
    null::varchar as request_id,
    null::integer as position,
    null::double as propensity,
    line,
    left(case when contains(text, chr(0)) or text is null then bytes::varchar else rtrim(text, chr(13)) end, 2000) as raw,
    case
        when text is null then 'not valid UTF-8'
        when contains(text, chr(0)) then 'holds a NUL byte'
        when trim(text, chr(13) || chr(9) || ' ') = '' then 'blank line'
        when columns <> 4 and torn then 'torn last line'
        when columns <> 4 then 'has ' || columns || ' columns instead of 4'
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
