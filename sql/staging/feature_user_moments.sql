-- One row a moment of a subject of the $kind: what was shown to a user then, and what became positive.
select
    case $kind
        when 'user' then "user"
        when 'user_item' then user_item
        when 'user_category' then user_category
        when 'user_brand' then user_brand
        when 'user_shop' then user_shop
    end as subject,
    moment,
    sum(shown)::int as shown,
    sum(positive)::int as positive
from user_facts
where subject in (select subject from asked) and (positive > 0 or $kind in ('user', 'user_item'))
group by all
