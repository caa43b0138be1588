-- What the range's users found positive, with the subjects of these facts: the user with the item's category, brand or
-- shop.
select
    moment, positive, "user",
    if(category is null, null, hash("user", category)) as user_category,
    if(brand is null, null, hash("user", brand)) as user_brand,
    if(shop is null, null, hash("user", shop)) as user_shop
from user_facts
join catalogue using (item)
where positive > 0
