-- One row a user: the last $positives items that came with positive feedback in the whole log, oldest first.
with positives as (
    select
        i.user_id,
        coalesce(items.item, 0) as item,
        codes.code as feedback,
        row_number() over (partition by i.user_id order by s.start_ts desc, session_id desc, i.position desc) as from_last
    from impressions as i
    join sessions as s using (session_id)
    join codes on codes.name = i.feedback
    left join items using (item_id)
    where codes.code >= $first_positive
),
newest as (
    select
        user_id,
        list(item order by from_last desc) as items,
        list(feedback order by from_last desc) as feedback
    from positives
    where from_last <= $positives
    group by user_id
)
select users.user_id, users.user_key, users.features, newest.items, newest.feedback
from users
left join newest using (user_id)
order by users.user_id
