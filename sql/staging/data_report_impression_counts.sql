-- The impressions of one day with one feedback, and how many of them have a propensity.
select
    date '1970-01-01' + (epoch_us(impression_ts) // 86_400_000_000)::int as impression_date,
    feedback,
    count(*) as impressions,
    count(propensity) as propensities
from impressions
group by impression_date, feedback
