-- Every refused record of every raw file.
select files.path as file, staged_rejects.line, staged_rejects.raw, staged_rejects.reason
from staged_rejects
join files using (file)
order by files.file, staged_rejects.line, staged_rejects.raw, staged_rejects.reason
