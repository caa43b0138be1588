-- What the log holds, by day and type of event.
select event_date, event_type, count(*) as events
from events
group by event_date, event_type
order by event_date, event_type
