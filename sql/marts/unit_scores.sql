-- One row a session, user or page that an agent was measured on, seeds averaged: what differences between agents are
-- taken of, and what intervals resample, clustered by user.
select leg, setting, metric, agent, session_id, user_key, page, count(*) as seeds, avg(value) as value
from scores
group by leg, setting, metric, agent, session_id, user_key, page
