-- The first $max_items different items of each training session, sessions numbered from 0.
with shown as (
    select
        impressions.session_id, items.item,
        min(impressions.position) as position,
        bool_or(impressions.feedback <> 'skip') as positive
    from impressions
    join session_splits using (session_id)
    join items using (item_id)
    where split = 'train' and items.item > 0
    group by impressions.session_id, items.item
),
first_shown as (
    select *
    from shown
    qualify row_number() over (partition by session_id order by position, item) <= $max_items
)
select dense_rank() over (order by session_id) - 1 as session, item, positive
from first_shown
order by session, item
