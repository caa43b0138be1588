-- One row a video. Features: is it an advertisement, log seconds, log of height over width, then the kind of upload as
-- flags. What is missing stays null.
with parsed as (
    select
        *,
        try_cast(video_duration as double) / 1000 as seconds,
        try_cast(server_width as double) as width,
        try_cast(server_height as double) as height
    from raw_rows
)
select
    trim(video_id) as item_id,
    null::varchar as title,
    nullif(trim(split_part(tag, ',', 1)), '') as category,
    null::varchar as brand,
    nullif(trim(author_id), '') as shop,
    null::double as price,
    try_cast(upload_dt || ' 00:00:00+08:00' as timestamptz) as listed_ts,
    list_concat(
        [
            (video_type = 'AD')::float,
            if(seconds >= 0, ln(1 + seconds), null)::float,
            if(width > 0 and height > 0, ln(height / width), null)::float
        ],
        [
            (upload_type = name)::float
            for name in [
                'LongImport', 'Web', 'ShortImport', 'Kmovie', 'LongPicture', 'PictureSet', 'LongCamera', 'ShortCamera'
            ]
        ]
    ) as features,
    line,
    if(fault is null, null, raw) as raw,
    fault
from parsed
qualify fault is not null or row_number() over (partition by trim(video_id) order by line) = 1
