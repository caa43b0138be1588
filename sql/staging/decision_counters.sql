-- What the log had counted of each candidate of a page, in the order of offered.
select item_counters.counters
from offered
left join items using (item_key)
left join item_counters using (item_id, ts)
order by n
