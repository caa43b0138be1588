-- One row an item and a moment that is asked for: what the log had counted of it strictly before. Its showings and its
-- positives since the log began; then what features tell of an item's past, as an impression of that moment would have
-- it.
select
    totals.item_id, totals.ts,
    [
        totals.impressions, totals.positives,
        impressions_1h, positives_1h, coalesce(positives_1h / nullif(impressions_1h, 0), 0),
        impressions_6h, positives_6h, coalesce(positives_6h / nullif(impressions_6h, 0), 0),
        impressions_24h, positives_24h, coalesce(positives_24h / nullif(impressions_24h, 0), 0),
        impressions_1w, positives_1w, coalesce(positives_1w / nullif(impressions_1w, 0), 0),
        age_hours
    ]::float[] as counters
from item_totals as totals
join item_counts using (impression)
left join item_ages using (impression)
