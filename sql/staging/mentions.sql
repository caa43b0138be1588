-- One row a thing that the events of a partition say of an item, and since when. Only what was said when the item was
-- shown: a category that clicks alone name would tell features that the item is clicked later.
select item_id, category, brand, shop, min(event_ts) as first_ts
from events
where (category is not null or brand is not null or shop is not null) and ($constructed or event_type = 'impression')
group by item_id, category, brand, shop
order by item_id, category, brand, shop
