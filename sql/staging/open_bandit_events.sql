-- One row a fact of a log row: the impression and the click. A row that cannot be used is one row with its reason.
with parsed as (
    select
        'pseudo-' || md5(concat_ws(',', user_feature_0, user_feature_1, user_feature_2, user_feature_3)) as user_id,
        '' in (trim(user_feature_0), trim(user_feature_1), trim(user_feature_2), trim(user_feature_3)) as is_nobody,
        trim(item_id) as item_id,
        "timestamp" as shown_at,
        try_cast("timestamp" as timestamptz) as shown_ts,
        try_cast(position as integer) as slot,
        click,
        try_cast(propensity_score as double) as propensity,
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
            when not coalesce(isfinite(shown_ts), false) then 'unreadable time stamp'
            when is_nobody then 'a user feature is blank'
            when slot is null or slot not between 1 and 3 then 'position is not 1, 2 or 3'
            when click not in ('0', '1') then 'click is not 0 or 1'
            when propensity is null then 'propensity_score is not a number'
        end as reason
    from parsed
),
facts as (
    select
        *,
        unnest([
            'impression'::event_type,
            if(reason is null and click = '1', 'click'::event_type, null)
        ]) as event_type
    from judged
)
select
    user_id,
    item_id,
    if(reason is null, shown_ts, null) as event_ts,
    event_type,
    user_id || '@' || shown_at as request_id,
    slot - 1 as position,
    if(event_type = 'impression', propensity, null) as propensity,
    line,
    raw,
    reason
from facts
where event_type is not null
