-- One shown item: how often it was shown, with what success, and how often before the cold-start cut-off ($cut).
select
    hash(item_id) as item,
    count(*) as impressions,
    count(*) filter (where feedback <> 'skip') as positives,
    count(*) filter (where impression_ts < $cut) as earlier
from impressions
group by item
