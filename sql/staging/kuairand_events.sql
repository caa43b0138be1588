-- One row a fact of a log row: the impression and, when the playing had ended, what came of it. A row that cannot be
-- used is one row with its reason.
with parsed as (
    select
        trim(user_id) as user_id,
        trim(video_id) as item_id,
        date,
        try_cast(time_ms as bigint) as shown_ms,
        try_cast(play_time_ms as bigint) as played_ms,
        try_cast(duration_ms as bigint) as duration_ms,
        is_click,
        is_like,
        long_view,
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
            when shown_ms is null then 'unreadable time stamp'
            when shown_ms not between 1_000_000_000_000 and 9_999_999_999_999 then 'time stamp is not in milliseconds'
            when played_ms is null or played_ms not between 0 and 86_400_000 then 'play_time_ms is not a time of play'
            when duration_ms is null or duration_ms < 0 then 'duration_ms is not a duration'
            when is_click not in ('0', '1') then 'is_click is not 0 or 1'
            when is_like not in ('0', '1') then 'is_like is not 0 or 1'
            when long_view not in ('0', '1') then 'long_view is not 0 or 1'
            when $by_day and not regexp_full_match(date, '\d{8}') then 'date is not written as 20220408'
        end as reason
    from parsed
),
facts as (
    select
        *,
        unnest([
            'impression'::event_type,
            case
                when reason is not null then null
                when $positive = 'watched' then if(duration_ms > 0, 'watch'::event_type, null)
                when if($positive = 'click', is_click, long_view) = '1' then 'click'::event_type
            end,
            if(reason is null and is_like = '1', 'favorite'::event_type, null)
        ]) as event_type
    from judged
)
select
    user_id,
    item_id,
    to_timestamp(if(reason is null, shown_ms + if(event_type = 'impression', 0, played_ms), null) / 1000) as event_ts,
    event_type,
    if(event_type = 'watch', played_ms / duration_ms, null) as value,
    if($by_day, date, null) as session_id,
    line,
    raw,
    reason
from facts
where event_type is not null
