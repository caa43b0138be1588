-- How sessions, users and items differ in length: mean and quantiles, and a histogram in powers of two.
with measures (measure, number) as (
    select unnest($measures::varchar[]), generate_subscripts($measures::varchar[], 1)
),
counted as (
    select
        measure,
        length,
        n,
        sum(n) over (partition by measure order by length) as upto,
        sum(n) over (partition by measure) as total
    from lengths
),
shares (name, share, place) as (
    values ('min', 0, 1), ('p10', 0.1, 2), ('p25', 0.25, 3), ('p50', 0.5, 4), ('p75', 0.75, 5), ('p90', 0.9, 6),
    ('p99', 0.99, 7), ('max', 1, 8)
),
quantiles as (
    select 'spread' as section, measure as name, shares.name as bucket, shares.place, min(length)::double as value
    from counted, shares
    where counted.upto >= shares.share * counted.total
    group by measure, shares.name, shares.place
),
means as (
    select 'spread' as section, measure as name, 'mean' as bucket, 0 as place, sum(length * n) / sum(n) as value
    from lengths
    group by measure
),
powers as (
    select measure, if(length = 0, 0, 2 ** floor(log2(length)))::bigint as low, sum(n)::double as n
    from lengths
    group by measure, low
),
histogram as (
    select
        'histogram' as section,
        measure as name,
        if(low <= 1, low::varchar, concat(low, '–', 2 * low - 1)) as bucket,
        low as place,
        n as value
    from powers
),
joined as (
    select * from means
    union all
    select * from quantiles
    union all
    select * from histogram
)
select joined.section, joined.name, joined.bucket, joined.value
from joined
join measures on measures.measure = joined.name
order by joined.section desc, measures.number, joined.place
