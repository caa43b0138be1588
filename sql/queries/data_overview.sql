-- The log in single figures, from the raw files to the sessions. An instant (UTC) stands beside the values.
select section, name, value, bucket as instant
from data_report
where section in ('overview', 'ingest')
order by place
