-- One row a training page: what the log had counted of each of its items strictly before it was shown, in the order of
-- the page's slots. See item_counters for what is counted.
with totals as (
    select item_id, ts, sum(shown) as shown, sum(positive) as positive from facts group by item_id, ts
),
past as (
    select
        item_id,
        ts,
        sum(shown) over so_far as shown,
        sum(positive) over so_far as positive
    from totals
    window so_far as (partition by item_id order by ts)
),
trained as (
    select
        session_id, page, position, i."row" * $cols + i.col as slot, item_id, impression_ts
    from impressions as i
    join session_splits using (session_id)
    where split = 'train'
),
told as (
    select
        trained.session_id, trained.page, trained.slot, trained.position,
        [
            coalesce(past.shown, 0), coalesce(past.positive, 0),
            f.item_impressions_1h, f.item_positives_1h, f.item_ctr_1h,
            f.item_impressions_6h, f.item_positives_6h, f.item_ctr_6h,
            f.item_impressions_24h, f.item_positives_24h, f.item_ctr_24h,
            f.item_impressions_1w, f.item_positives_1w, f.item_ctr_1w,
            f.item_age_hours
        ]::float[] as counters
    from trained
    left join features as f using (session_id, position)
    asof left join past on past.item_id = trained.item_id and past.ts < trained.impression_ts
)
select session_id, page, flatten(list(counters order by slot, position)) as counters
from told
group by session_id, page
