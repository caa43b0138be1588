-- How long sessions are, in ranges that double: impressions, pages, and whole minutes (0 is less than one).
select
    name as measure,
    bucket as length,
    value::bigint as sessions,
    value / sum(value) over (partition by name) as share
from data_report
where section = 'histogram' and ends_with(name, '_of_a_session')
order by place
