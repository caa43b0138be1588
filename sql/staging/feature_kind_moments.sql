-- One row a moment of a subject of the $kind, a user with a category, a brand or a shop: what became positive then.
select
    case $kind
        when 'user_category' then user_category
        when 'user_brand' then user_brand
        when 'user_shop' then user_shop
    end as subject,
    moment,
    0 as shown,
    sum(positive)::int as positive
from user_positives
where subject in (select subject from asked)
group by all
