-- Embeddings of items that the training window does not show, and items of it that have none or another's.
with trained as (
    select distinct item_id
    from impressions
    join session_splits using (session_id)
    where split = 'train'
),
known as (
    select items.item_id, items.item from items join trained using (item_id)
)
select
    item_id,
    concat(
        'item ', item_id,
        case
            when known.item_id is null then ' has an embedding, but the training window does not show it'
            when item_embeddings.item_id is null then ' is shown in the training window, but has no embedding'
            else concat(' has index ', known.item, ', but its embedding belongs to ', item_embeddings.item)
        end
    ) as reason
from item_embeddings
full join known using (item_id)
where known.item is distinct from item_embeddings.item
order by item_id
