-- One row a slate with a whole portrait of its user: the 32 numbers behind the ten codes, as signed logarithms.
with parsed as (
    select
        $log || '-' || trim(session_id) as user_id,
        try_cast(timestamp as bigint) as second,
        try_cast(sequence_id as integer) as page,
        string_split(user_protrait, ',') as portrait,
        fault
    from raw_rows
),
numbers as (
    select *, try_cast(portrait[11:42] as double[]) as dense
    from parsed
)
select user_id, second, page, list_transform(dense, lambda x: (sign(x) * ln(1 + abs(x)))::float) as features
from numbers
where fault is null and second is not null and page is not null and len(portrait) = 42 and list_count(dense) = 32
