-- One row an item that the log describes: the kinds that it belongs to, and since when it was on offer.
select
    item_id, listed_ts,
    nullif(category, '') as category,
    nullif(brand, '') as brand,
    nullif(shop, '') as shop
from described_items
qualify row_number() over (partition by item_id order by category, brand, shop, listed_ts) = 1
