-- The share of each type's events that fill a column which a log may leave out. Off-policy evaluation needs the
-- propensities of impressions.
select
    bucket as event_type,
    max(value) filter (where name = 'session_id') as session_id,
    max(value) filter (where name = 'request_id') as request_id,
    max(value) filter (where name = 'position') as position,
    max(value) filter (where name = 'propensity') as propensity,
    max(value) filter (where name = 'value') as value
from data_report
where section = 'coverage'
group by bucket
order by min(place)
