-- Why input rows were refused. Quoted values are cut from the reasons: they may be personal data.
with reasons as (
    select regexp_replace(coalesce(reason, 'no reason given'), '"[^"]*"|''[^'']*''', '…', 'g') as reason, file
    from rejects
)
select reason, count(*) as n_rows, count(distinct file) as files
from reasons
group by reason
order by n_rows desc, reason
