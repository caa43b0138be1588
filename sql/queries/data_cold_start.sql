-- What the last fifth of the sessions meets for the first time, and when (UTC) that fifth begins. For what is new to
-- the training window see slices.
select name, value, bucket as instant
from data_report
where section = 'cold_start'
order by place
