-- One row an item of which the events of a partition say something: the smallest of what they say.
select item_id, min(category) as category, min(brand) as brand, min(shop) as shop
from events
where category is not null or brand is not null or shop is not null
group by item_id
order by item_id
