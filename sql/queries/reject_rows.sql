-- The refused records behind one reason of the data report, as rejects_by_reason names it (quoted values are cut to …),
-- each with its file and line.
select file, line, raw, reason
from rejects
where regexp_replace(coalesce(reason, 'no reason given'), '"[^"]*"|''[^'']*''', '…', 'g') = $reason
order by file, line, raw
