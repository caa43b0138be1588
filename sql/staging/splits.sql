-- The three splits in global time. A session that starts in a split and reaches its end is dropped.
with log as (
    select min(start_ts) as start_ts, max(end_ts) + interval 1 microsecond as end_ts from sessions
),
bounds as (
    select 1 as number, 'train' as split, least(start_ts, $validation) as start_ts, $validation as end_ts from log
    union all
    select 2, 'validation', $validation, $test
    union all
    select 3, 'test', $test, greatest(end_ts, $test) from log
)
select
    bounds.split, bounds.start_ts, bounds.end_ts,
    count(sessions.session_id) filter (where sessions.end_ts < bounds.end_ts) as sessions,
    count(sessions.session_id) filter (where sessions.end_ts >= bounds.end_ts) as dropped,
    count(sessions.session_id) filter (
        where sessions.end_ts < bounds.end_ts and sessions.clicks between 1 and sessions.impressions - 1
    ) as usable
from bounds
left join sessions on sessions.start_ts >= bounds.start_ts and sessions.start_ts < bounds.end_ts
group by bounds.number, bounds.split, bounds.start_ts, bounds.end_ts
order by bounds.number
