-- Every refused record of every raw file.
select files.path as file, staged_rejects.line, staged_rejects.raw, staged_rejects.reason
from files
join staged_rejects on staged_rejects.filename = files.rejects
order by files.path, staged_rejects.line, staged_rejects.raw, staged_rejects.reason
