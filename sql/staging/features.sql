-- How often an item was shown and how often that became positive in the hour, day … strictly before each impression. A
-- moment's own impressions and positives count for none of that moment; a window's first microsecond does count.
with moments as (
    select item_id, impression_ts as ts, count(*) as shown, 0 as positive
    from impressions
    group by item_id, impression_ts
    union all
    select item_id, positive_ts as ts, 0 as shown, count(*) as positive
    from positive_times
    group by item_id, positive_ts
),
timeline as (
    select item_id, ts, sum(shown)::bigint as shown, sum(positive)::bigint as positive from moments group by item_id, ts
),
running as (
    select
        item_id, ts,
        (sum(shown) over past)::bigint - shown as shown_before,
        (sum(positive) over past)::bigint - positive as positive_before
    from timeline
    window past as (partition by item_id order by ts rows unbounded preceding)
),
-- Counts so far less those at the first moment of the window: half the time of a sum over each window (measured).
counted as (
    select
        item_id, ts,
        shown_before - first_value(shown_before) over last_1h as item_impressions_1h,
        positive_before - first_value(positive_before) over last_1h as item_positives_1h,
        shown_before - first_value(shown_before) over last_6h as item_impressions_6h,
        positive_before - first_value(positive_before) over last_6h as item_positives_6h,
        shown_before - first_value(shown_before) over last_24h as item_impressions_24h,
        positive_before - first_value(positive_before) over last_24h as item_positives_24h,
        shown_before - first_value(shown_before) over last_1w as item_impressions_1w,
        positive_before - first_value(positive_before) over last_1w as item_positives_1w
    from running
    window
        last_1h as (partition by item_id order by ts range between interval 1 hour preceding and current row),
        last_6h as (partition by item_id order by ts range between interval 6 hours preceding and current row),
        last_24h as (partition by item_id order by ts range between interval 24 hours preceding and current row),
        last_1w as (partition by item_id order by ts range between interval 168 hours preceding and current row)
)
select
    impressions.session_id, impressions.position, impressions.item_id, impressions.impression_ts,
    item_impressions_1h, item_positives_1h,
    coalesce(item_positives_1h / nullif(item_impressions_1h, 0), 0) as item_ctr_1h,
    item_impressions_6h, item_positives_6h,
    coalesce(item_positives_6h / nullif(item_impressions_6h, 0), 0) as item_ctr_6h,
    item_impressions_24h, item_positives_24h,
    coalesce(item_positives_24h / nullif(item_impressions_24h, 0), 0) as item_ctr_24h,
    item_impressions_1w, item_positives_1w,
    coalesce(item_positives_1w / nullif(item_impressions_1w, 0), 0) as item_ctr_1w
from impressions
join counted on counted.item_id = impressions.item_id and counted.ts = impressions.impression_ts
where impressions.impression_ts >= $start and impressions.impression_ts < $end
order by impression_ts, session_id, position
