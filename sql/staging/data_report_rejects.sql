-- Refused records by reason, the commonest ones by name. Quoted values are cut from the reasons already.
with numbered as (
    select reason, n_rows, row_number() over (order by n_rows desc, reason) as number from reasons
),
named as (
    select
        if(number <= $named, reason, 'other reasons') as reason,
        sum(n_rows)::double as n_rows,
        min(number) as number
    from numbered
    group by 1
)
select 'rejects' as section, 'rows' as name, reason as bucket, n_rows as value
from named
order by number
