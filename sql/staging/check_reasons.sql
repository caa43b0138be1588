-- Why records are refused, commonest first, each with the first of them.
select reason, count(*) as facts, min(line) as line, left(arg_min(raw, line), $longest) as raw
from sampled_facts
where reason is not null
group by reason
order by facts desc, reason
