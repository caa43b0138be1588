-- One row a logged request: the items that its page could have been composed of, and its ranker's logits of them.
select
    request_id::varchar as request_id,
    item_ids::varchar[] as item_ids,
    logits::double[] as logits
from raw_pools
where request_id is not null
qualify row_number() over (partition by request_id order by file_name, file_row_number) = 1
order by request_id
