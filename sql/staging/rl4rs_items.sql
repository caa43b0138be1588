-- One row an item: its 40 numbers, its layer (1 to 3) and its kind (plain, 1 or 2, which a slate holds once) as flags.
with parsed as (
    select
        trim(item_id) as item_id,
        try_cast(string_split(item_vec, ',') as float[]) as vector,
        try_cast(price as double) as price,
        trim(location) as layer,
        trim(special_item) as special,
        line,
        raw,
        fault
    from raw_rows
)
select
    item_id,
    null::varchar as title,
    layer as category,
    null::varchar as brand,
    null::varchar as shop,
    price,
    null::timestamptz as listed_ts,
    list_concat(
        vector,
        [(layer = '1')::float, (layer = '2')::float, (layer = '3')::float],
        [(special = '1')::float, (special = '2')::float]
    ) as features,
    line,
    raw,
    case
        when fault is not null then fault
        when len(vector) <> 40 or list_count(vector) <> 40 then 'item_vec is not a list of 40 numbers'
        when price is null then 'its price is not a number'
    end as fault
from parsed
qualify fault is not null or row_number() over (partition by item_id order by line) = 1
order by item_id
