-- One row a shown item, in the order of the first showing: what a page could have shown is what had been shown before it.
select items.item, items.item_key, min(impressions.impression_ts) as first_ts
from impressions
join items using (item_id)
group by items.item, items.item_key
order by first_ts, items.item_key
