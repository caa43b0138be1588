-- The first $max_items different items of each training session, sessions numbered from 0.
with taken as (
    select impressions.session_id, items.item, min(impressions.position) as position
    from impressions
    join session_splits using (session_id)
    join items using (item_id)
    where split = 'train' and items.item > 0 and (not $positives_only or feedback <> 'skip')
    group by impressions.session_id, items.item
),
first_taken as (
    select *
    from taken
    qualify row_number() over (partition by session_id order by position, item) <= $max_items
)
select dense_rank() over (order by session_id) - 1 as session, item
from first_taken
order by session, item
