-- The instant before which a share of the sessions has started: the start that comes nearest, of those that leave a
-- start before it and $later_splits starts after it.
with starts as (
    select start_ts, count(*) as sessions from sessions group by start_ts
),
counted as (
    select
        start_ts,
        sum(sessions) over (order by start_ts) - sessions as earlier,
        sum(sessions) over () as total,
        row_number() over (order by start_ts desc) - 1 as later_starts
    from starts
)
select start_ts
from counted
where earlier > 0 and later_starts >= $later_splits and start_ts > coalesce($after, '-infinity'::timestamptz)
order by abs(earlier - $share * total), start_ts
limit 1
