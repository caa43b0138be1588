-- Counters of candidates with the moments before which they were counted, of $sample sessions that are ranked.
with sampled as (
    select session_id, start_ts, item_keys, counters, len(counters) // len(items) as width
    from candidates
    order by md5_number_lower(session_id::varchar)
    limit $sample
),
offered as (
    select *, unnest(item_keys) as item_key, unnest(range(len(item_keys))) as n from sampled
)
select
    concat('candidate ', n, ' of session ', session_id) as place,
    item_id,
    start_ts as ts,
    offered.counters[n * width + 1:(n + 1) * width] as counters
from offered
join items using (item_key)
