-- How unlike sessions, users and items are: mean and quantiles of their lengths and counts.
select
    name as measure,
    max(value) filter (where bucket = 'mean') as mean,
    max(value) filter (where bucket = 'min')::bigint as lowest,
    max(value) filter (where bucket = 'p10')::bigint as p10,
    max(value) filter (where bucket = 'p25')::bigint as p25,
    max(value) filter (where bucket = 'p50')::bigint as median,
    max(value) filter (where bucket = 'p75')::bigint as p75,
    max(value) filter (where bucket = 'p90')::bigint as p90,
    max(value) filter (where bucket = 'p99')::bigint as p99,
    max(value) filter (where bucket = 'max')::bigint as highest
from data_report
where section = 'spread'
group by name
order by min(place)
