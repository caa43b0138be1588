-- The facts of the range's users from a week before the range to its end, with their subjects; the quiet time, as in
-- feature_item_moments.sql, is one moment.
with of_users as (
    select
        user_id, item_id, shown, positive,
        epoch_us(if(ts >= $quiet_from and ts < $quiet_until, $quiet_from, ts)) as moment
    from facts
    where ts >= $read_from and ts < $end and user_id in (select user_id from shown)
)
select
    moment, shown, positive,
    hash(user_id) as "user",
    hash(user_id, item_id) as user_item,
    if(category is null, null, hash(user_id, category)) as user_category,
    if(brand is null, null, hash(user_id, brand)) as user_brand,
    if(shop is null, null, hash(user_id, shop)) as user_shop
from of_users
left join catalogue using (item_id)
