-- Each impression of the range that has a subject of the $kind, and the moment before which it asks for its past.
select
    impression, us,
    case $kind
        when 'item' then item
        when 'user' then "user"
        when 'user_item' then user_item
        when 'user_category' then user_category
        when 'user_brand' then user_brand
        when 'user_shop' then user_shop
    end as subject
from shown
where subject is not null
