-- One row a training page: what the log had counted of each of its items strictly before it was shown, in the order of
-- the page's slots. As item_counters has it, but of the past week what features say.
with told as (
    select
        i.session_id, i.page, i."row" * $cols + i.col as slot, i.position,
        [
            totals.impressions, totals.positives,
            f.item_impressions_1h, f.item_positives_1h, f.item_ctr_1h,
            f.item_impressions_6h, f.item_positives_6h, f.item_ctr_6h,
            f.item_impressions_24h, f.item_positives_24h, f.item_ctr_24h,
            f.item_impressions_1w, f.item_positives_1w, f.item_ctr_1w,
            f.item_age_hours
        ]::float[] as counters
    from impressions as i
    join session_splits using (session_id)
    join item_totals as totals on totals.item_id = i.item_id and totals.ts = i.impression_ts
    left join features as f on f.session_id = i.session_id and f.position = i.position
    where split = 'train'
)
select session_id, page, flatten(list(counters order by slot, position)) as counters
from told
group by session_id, page
