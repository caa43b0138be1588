-- What became of the raw records of all files together.
with totals as (
    select
        count(*)::double as raw_files,
        coalesce(sum(rows_in), 0)::double as rows_in,
        coalesce(sum(unpacked), 0)::double as unpacked,
        coalesce(sum(events), 0)::double as events,
        coalesce(sum(duplicates), 0)::double as duplicates,
        coalesce(sum(rejects), 0)::double as rejects,
        coalesce(sum(left_out), 0)::double as left_out
    from ingest_counts
)
select 'ingest' as section, name, null::varchar as bucket, value
from totals
unpivot (value for name in (*))
