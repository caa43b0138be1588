-- What came of the impressions at best: how many, and which share of all.
with totals as (
    select name as feedback, sum(value)::bigint as impressions
    from data_report
    where section = 'feedback_by_period'
    group by name
)
select feedback, impressions, impressions / sum(impressions) over () as share
from totals
order by impressions desc, feedback
