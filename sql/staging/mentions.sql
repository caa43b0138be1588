-- One row an item of which the events of a partition say something: the smallest of what they say. Only what was said when
-- the item was shown: a category that clicks alone name would tell features that the item is clicked later.
select item_id, min(category) as category, min(brand) as brand, min(shop) as shop
from events
where (category is not null or brand is not null or shop is not null) and ($constructed or event_type = 'impression')
group by item_id
order by item_id
