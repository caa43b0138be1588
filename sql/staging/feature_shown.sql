-- The impressions of the range, numbered, with what the catalogue says of the item and the subjects whose past counts
-- for them: an item, a user, or a user with an item, a category, a brand or a shop. Hashes of 64 bits tell subjects
-- apart: they sort and join several times as fast as the log's own ids.
select
    row_number() over () as impression,
    session_id, user_id, item_id, page, position, impression_ts, category, brand, shop, listed_ts,
    epoch_us(impression_ts) as us,
    hash(item_id) as item,
    hash(user_id) as "user",
    hash(user_id, item_id) as user_item,
    if(category is null, null, hash(user_id, category)) as user_category,
    if(brand is null, null, hash(user_id, brand)) as user_brand,
    if(shop is null, null, hash(user_id, shop)) as user_shop
from impressions
left join catalogue using (item_id)
where impression_ts >= $start and impression_ts < $end
