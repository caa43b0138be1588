-- The log over time: events by type, impressions by feedback, sessions, and the users and items with events.
select bucket::date as period, replace(section, '_by_period', '') as subject, name, value::bigint as n
from data_report
where ends_with(section, '_by_period')
order by period, place
