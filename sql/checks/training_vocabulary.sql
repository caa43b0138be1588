-- Items with an index that no session of the training window showed, and shown ones without an index: the canary.
with trained as (
    select distinct item_id
    from impressions
    join session_splits using (session_id)
    where split = 'train'
)
select
    item_id,
    concat(
        'item ', item_id,
        if(
            item > 0,
            ' has an index, but the training window does not show it',
            ' is shown in the training window, but has none'
        )
    ) as reason
from items
left join trained using (item_id)
where (item > 0) <> (trained.item_id is not null)
order by item_id
