-- The impressions of one day with one feedback, and how many of them have a propensity.
select
    make_timestamp(epoch_us(impression_ts))::date as impression_date,
    feedback,
    count(*) as impressions,
    count(propensity) as propensities
from impressions
group by impression_date, feedback
