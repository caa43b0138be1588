-- One user or item in one period in which it has events. Hashes stand for the ids: narrow, and never published.
select distinct 'users' as entity, hash(user_id) as key, date_trunc($grain, event_date)::date as period
from events
union all
select distinct 'items' as entity, hash(item_id) as key, date_trunc($grain, event_date)::date as period
from events
