-- What became of the records of each raw file. A fact belongs to the first file that has it; where its partition is
-- published (periods), it counts as an event only if it is there.
with firsts as (
    select event_id, min(file) as file, min(event_ts) as event_ts
    from staged
    group by event_id
),
missing as (
    select firsts.event_id, firsts.file
    from firsts
    join periods on firsts.event_ts >= periods.start_ts and firsts.event_ts < periods.end_ts
    anti join events using (event_id)
),
staged_rows as (
    select file, count(*) as n from staged group by file
),
first_rows as (
    select file, count(*) as n from firsts group by file
),
missing_rows as (
    select file, count(*) as n from missing group by file
),
reject_rows as (
    select file, count(*) as n from staged_rejects group by file
)
select
    files.path,
    files.rows_in,
    coalesce(first_rows.n, 0) - coalesce(missing_rows.n, 0) as events,
    coalesce(staged_rows.n, 0) - coalesce(first_rows.n, 0) as duplicates,
    coalesce(reject_rows.n, 0) as rejects
from files
left join staged_rows using (file)
left join first_rows using (file)
left join missing_rows using (file)
left join reject_rows using (file)
order by files.file
