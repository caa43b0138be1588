-- What stands behind one column of the leaderboard, by agent: the value of every session (re-ranking) or user
-- (roll-outs), seeds averaged. Two runs are compared on these.
select agent, coalesce(session_id, user_key) as unit, user_key, value
from unit_scores
where leg = $leg and leg in ('rerank', 'rollout') and setting = $setting and metric = $metric
order by agent, unit
