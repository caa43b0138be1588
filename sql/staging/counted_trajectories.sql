-- Counters of shown items with the moments before which they were counted, of $sample training sessions.
with sampled as (
    select session_id, step, counters, len(counters) // len(action) as width
    from trajectories
    where relabel = 'original' and session_id in (
        select session_id from session_splits where split = 'train'
        order by md5_number_lower(session_id::varchar) limit $sample
    )
),
shown as (
    select session_id, page as step, "row" * $cols + col as slot, item_id, impression_ts as ts from impressions
)
select
    concat('slot ', slot, ' of page ', step, ' in session ', session_id) as place,
    item_id, ts,
    counters[slot * width + 1:(slot + 1) * width] as counters
from sampled
join shown using (session_id, step)
