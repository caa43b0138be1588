-- One row an item and a moment of the table asked: what the log had counted of it strictly before. Its showings and its
-- positives since the log began; then what features tell of an item's past, as an impression of that moment would have
-- it.
with totals as (
    select item_id, ts, sum(shown) as shown, sum(positive) as positive
    from facts
    where item_id in (select item_id from asked)
    group by item_id, ts
),
past as (
    select
        item_id, ts,
        sum(shown) over so_far as shown,
        sum(positive) over so_far as positive
    from totals
    window so_far as (partition by item_id order by ts)
),
edges as (
    select item_id, ts, hours, ts - to_hours(hours) as edge
    from asked, (select unnest([0, 1, 6, 24, 168]) as hours)
),
before as (  -- what lay before each edge of a window
    select edges.item_id, edges.ts, hours, coalesce(past.shown, 0) as shown, coalesce(past.positive, 0) as positive
    from edges
    asof left join past on past.item_id = edges.item_id and past.ts < edges.edge
),
windows as (
    select
        item_id, ts, hours,
        if(hours = 0, shown, first_value(shown) over moment - shown) as impressions,
        if(hours = 0, positive, first_value(positive) over moment - positive) as positives
    from before
    window moment as (partition by item_id, ts order by hours)
),
counts as (
    select
        item_id, ts,
        flatten(list(
            if(hours = 0,
                [impressions, positives]::float[],
                [impressions, positives, coalesce(positives / nullif(impressions, 0), 0)]::float[])
            order by hours
        )) as counters
    from windows
    group by item_id, ts
),
ages as (  -- hours since the first showing within a week
    select asked.item_id, asked.ts, (epoch_us(asked.ts) - epoch_us(showings.ts)) / 3_600_000_000 as hours
    from asked
    asof join (select item_id, ts from totals where shown > 0) as showings
        on showings.item_id = asked.item_id and showings.ts >= asked.ts - to_hours(168)
    where showings.ts < asked.ts
)
select item_id, ts, counts.counters || [ages.hours]::float[] as counters
from counts
left join ages using (item_id, ts)
