-- Counters of candidates with the moments before which they were counted, of the pages of $sample sessions.
with sampled as (
    select session_id, step, candidate_keys, counters, len(counters) // len(candidates) as width
    from decisions
    where session_id in (
        select session_id from decisions group by session_id
        order by md5_number_lower(session_id::varchar) limit $sample
    )
),
pages as (
    select session_id, page as step, min(impression_ts) as ts from impressions group by session_id, page
),
offered as (
    select *, unnest(candidate_keys) as item_key, unnest(range(len(candidate_keys))) as n from sampled
)
select
    concat('candidate ', n, ' of page ', step, ' in session ', session_id) as place,
    item_id, ts,
    offered.counters[n * width + 1:(n + 1) * width] as counters
from offered
join pages using (session_id, step)
join items using (item_key)
