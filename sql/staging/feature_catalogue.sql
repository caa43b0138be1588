-- One row an item of needed_items that the log describes: the kinds that it belongs to, and since when it was on offer.
-- The catalogue has the first word, the events the second.
with catalogue as (
    select
        hash(item_id) as item,
        listed_ts,
        nullif(category, '') as category,
        nullif(brand, '') as brand,
        nullif(shop, '') as shop
    from described_items
    where hash(item_id) in (select item from needed_items)
    qualify row_number() over (partition by item_id order by category, brand, shop, listed_ts) = 1
),
mentioned as (
    select
        hash(item_id) as item,
        nullif(min(category), '') as category,
        nullif(min(brand), '') as brand,
        nullif(min(shop), '') as shop
    from mentions
    where hash(item_id) in (select item from needed_items)
    group by item
)
select
    item,
    catalogue.listed_ts,
    coalesce(catalogue.category, mentioned.category) as category,
    coalesce(catalogue.brand, mentioned.brand) as brand,
    coalesce(catalogue.shop, mentioned.shop) as shop
from catalogue
full join mentioned using (item)
