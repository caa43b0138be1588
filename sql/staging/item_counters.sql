-- One row an item: what the log had counted of it when the training window ended. The columns of features that tell of
-- an item's past, as an impression at that moment would have them, after its showings and positives since the log began.
with past as (
    select item_id, shown, positive, epoch_us(ts) as us, epoch_us(end_ts) as now, now - us as ago
    from facts, (select end_ts from splits where split = 'train') as training
    where ts < end_ts
),
windows as (
    select
        item_id,
        hours,
        (sum(shown) filter (where ago <= hours * 3_600_000_000))::int as impressions,
        (sum(positive) filter (where ago <= hours * 3_600_000_000))::int as positives
    from past, (select unnest([1, 6, 24, 168]) as hours)
    group by item_id, hours
),
of_windows as (
    select
        item_id,
        flatten(list([
            coalesce(impressions, 0), coalesce(positives, 0), coalesce(positives / nullif(impressions, 0), 0)
        ]::float[] order by hours)) as counters
    from windows
    group by item_id
)
select
    item_id,
    [sum(shown), sum(positive)]::float[] || any_value(of_windows.counters) || [
        max(ago) filter (where shown > 0 and ago <= 604_800_000_000) / 3_600_000_000
    ]::float[] as counters
from past
join of_windows using (item_id)
group by item_id
