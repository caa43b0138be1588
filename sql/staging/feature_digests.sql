-- One row a file of impressions and day (UTC since 1970): what the features of that day and of the week after it are made
-- from, summed up in any order.
with facts as (
    select filename, impression_ts as ts, hash(session_id, user_id, item_id, page, position, impression_ts) as digest
    from read_parquet($files, filename = true, hive_partitioning = false)
    union all
    select filename, positive_ts as ts, hash(user_id, item_id, positive_ts) as digest
    from read_parquet($files, filename = true, hive_partitioning = false)
    where positive_ts is not null
)
select filename, make_timestamp(epoch_us(ts))::date - date '1970-01-01' as day, count(*) as facts, sum(digest) as digest
from facts
group by filename, day
order by filename, day
