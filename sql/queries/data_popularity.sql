-- What the most popular of the shown items take of the impressions and of the positives; Gini is 0 where all are alike.
select
    bucket as kind,
    max(value) filter (where name = 'top_1_percent_share') as top_1_percent_share,
    max(value) filter (where name = 'top_10_percent_share') as top_10_percent_share,
    max(value) filter (where name = 'gini') as gini
from data_report
where section = 'popularity'
group by bucket
order by bucket
