-- One row an item and hour (since 1970) in which it was shown, and how often.
select key64(item_id) as item_key, datediff('hour', timestamptz 'epoch', impression_ts) as hour, count(*) as showings
from impressions
group by all
order by all
