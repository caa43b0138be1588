-- One row an item of the campaign.
select
    trim(item_id) as item_id,
    null::varchar as title,
    nullif(item_feature_1, '') as category,
    nullif(item_feature_2, '') as brand,
    nullif(item_feature_3, '') as shop,
    null::double as price,
    null::timestamptz as listed_ts,
    [try_cast(item_feature_0 as float)] as features,
    line,
    if(fault is null, null, raw) as raw,
    fault
from raw_rows
qualify fault is not null or row_number() over (partition by trim(item_id) order by line) = 1
