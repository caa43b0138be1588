-- One row a movie: genres as flags in a fixed order, then the release year in centuries since 1900.
-- A line that cannot be read has a null item_id.
with filled as (
    select file, line, rtrim(text, chr(13)) as text
    from lines
    where trim(text, chr(13) || ' ') <> '' and not starts_with(lower(text), 'movieid,')
),
split as (
    select file, line, text, regexp_extract(text, $pattern, ['item_id', 'title', 'genres']) as fields
    from filled
),
named as (
    select
        file,
        line,
        text,
        nullif(fields.item_id, '') as item_id,
        case
            when starts_with(fields.title, '"') then replace(fields.title[2:-2], '""', '"')
            else fields.title
        end as title,
        case
            when len($flags::varchar[]) > 0 then [
                pair[1] for pair in list_zip($flags::varchar[], string_split(trim(fields.genres), '|')) if pair[2] = '1'
            ]
            else string_split(replace(fields.genres, 'Children''s', 'Children'), '|')
        end as genres
    from split
    qualify item_id is null or row_number() over (partition by item_id order by file, line) = 1
),
dated as (
    select *, try_cast(regexp_extract(title, '.*\((\d{4})[^)]*\)', 1) as double) as year
    from named
)
select
    file,
    line,
    text,
    item_id,
    trim(title) as title,
    coalesce(list_extract([genre for genre in genres if list_contains($genres::varchar[], genre)], 1), 'unknown')
        as category,
    null::varchar as brand,
    null::varchar as shop,
    null::double as price,
    null::timestamptz as listed_ts,  -- a year is no point in time: it is a feature
    list_append(
        [list_contains(genres, genre)::float for genre in $genres::varchar[]],
        -- a movie without a year gets the mean, which says nothing
        ((coalesce(year, avg(year) over (), 1900) - 1900) / 100)::float
    ) as features
from dated
order by item_id
