-- The impressions of the range with what the catalogue says of the item and the subjects whose past counts for them: an
-- item, a user, or a user with an item, a category, a brand or a shop.
select
    in_range.* exclude (user_id),
    category, brand, shop, listed_ts,
    hash("user", item) as user_item,
    if(category is null, null, hash("user", category)) as user_category,
    if(brand is null, null, hash("user", brand)) as user_brand,
    if(shop is null, null, hash("user", shop)) as user_shop
from in_range
left join catalogue using (item)
