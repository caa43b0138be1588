-- The facts of the rows that were read that can be used, or could if they lay in the time range, by type.
select event_type::varchar as event_type, count(*) as facts, min(event_ts) as first_ts, max(event_ts) as last_ts
from sampled_facts
where reason is null or reason = $outside
group by event_type
order by facts desc, event_type
