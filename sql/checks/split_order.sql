-- Sessions and impressions of a split that do not lie before all those of the later splits.
with moments as (
    select session_id, split, start_ts as first_ts, end_ts as last_ts
    from sessions
    join session_splits using (session_id)
    union all
    select session_id, split, least(min(page_ts), min(impression_ts)), max(impression_ts)
    from impressions
    join session_splits using (session_id)
    group by session_id, split
),
later as (
    select 'train' as split, min(first_ts) as begins from moments where split in ('validation', 'test')
    union all
    select 'validation', min(first_ts) from moments where split = 'test'
)
select
    moments.session_id,
    concat(
        'session ', moments.session_id, ' of the ', split, ' split lasts until ', last_ts,
        ', but a later split begins at ', begins
    ) as reason
from moments
join later using (split)
where last_ts >= begins
order by session_id, last_ts
