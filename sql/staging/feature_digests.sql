-- One row a day (UTC) of what the features of that day and of the week after it are made from, summed up in any order.
with facts as (
    select impression_ts as ts, hash(session_id, user_id, item_id, page, position, impression_ts) as digest
    from impressions
    union all
    select positive_ts as ts, hash(user_id, item_id, positive_ts) as digest
    from impressions
    where positive_ts is not null
)
select make_timestamp(epoch_us(ts))::date - date '1970-01-01' as day, count(*) as facts, sum(digest)::varchar as digest
from facts
group by day
order by day
