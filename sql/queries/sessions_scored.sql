-- How many test sessions count in re-ranking, and why the others cannot: every metric's n is "scored".
select
    mode,
    count(distinct session_id) as sessions,
    count(distinct session_id) filter (where status = 'scored') as scored,
    count(distinct session_id) filter (where status = 'no_positive') as no_positive,
    count(distinct session_id) filter (where status = 'all_positive') as all_positive
from rerank
group by mode
order by mode desc
