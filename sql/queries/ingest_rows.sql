-- The rows that the totals of what became of the raw records are sums of: one a raw file.
select path, rows_in, unpacked, events, duplicates, rejects, left_out
from ingest_counts
order by path
