-- One row a user: age in centuries, female, male, then the occupation as flags in a fixed order.
-- A line that cannot be read has a null user_id.
with filled as (
    select file, line, rtrim(text, chr(13)) as text
    from lines
    where trim(text, chr(13) || ' ') <> ''
),
split as (
    select file, line, text, string_split(text, $separator) as fields
    from filled
),
named as (
    select
        file,
        line,
        text,
        case when len(fields) = 5 then nullif(regexp_extract(fields[1], '^\s*(\d+)\s*$', 1), '') end as user_id,
        try_cast(fields[$age::bigint] as double) as age,
        upper(trim(fields[$gender::bigint])) as gender,
        trim(fields[4]) as occupation
    from split
    qualify user_id is null or row_number() over (partition by user_id order by file, line) = 1
)
select
    file,
    line,
    text,
    user_id,
    list_concat(
        [(coalesce(age, avg(age) over (), 0) / 100)::float, (gender = 'F')::float, (gender = 'M')::float],
        [(occupation = name)::float for name in $occupations::varchar[]]
    ) as features
from named
order by user_id
