-- One row a moment of a subject of the $kind, a user or a user with an item: what was shown then, and what became
-- positive.
select
    if($kind = 'user', "user", hash("user", item)) as subject,
    moment,
    sum(shown)::int as shown,
    sum(positive)::int as positive
from user_facts
where subject in (select subject from asked)
group by all
