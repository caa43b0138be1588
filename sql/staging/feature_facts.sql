-- One row a fact: an item was shown to a user, or what was shown became known as positive.
select user_id, item_id, impression_ts as ts, 1 as shown, 0 as positive
from impressions
union all
select user_id, item_id, positive_ts as ts, 0 as shown, 1 as positive
from impressions
where positive_ts is not null
