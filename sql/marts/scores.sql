-- One row a measurement under one agent and seed: of a test session (rerank), of a user's episode (rollout), of a
-- logged page (ope), of an episode under one goal (goals; the agent is "agent (goal)") or under a decoder (decoding).
-- What the report says of them is the mean of these, seeds averaged first.
select 'rerank' as leg, mode as setting, metric, agent, seed, session_id, user_key, null::integer as page, value
from rerank
unpivot (
    value for metric in (columns(* exclude (session_id, user_key, agent, seed, mode, candidates, positives, status)))
)
union all
select 'rollout' as leg, setting, metric, agent, seed, null::bigint as session_id, user_key, null::integer as page, value
from rollout
unpivot (value for metric in (columns(* exclude (setting, simulator, side, sessions, agent, seed, user_key))))
union all
select 'ope' as leg, 'page/' || estimator as setting, 'value' as metric, agent, seed, session_id, user_key, page, value
from page_scores
union all
select
    'goals' as leg,
    setting,
    metric,
    if(goal = '', agent, concat(agent, ' (', goal, ')')) as agent,
    seed,
    null::bigint as session_id,
    user_key,
    null::integer as page,
    value
from goal_episodes
unpivot (value for metric in (clicks, purchases, depth, "return"))
union all
select
    'decoding' as leg,
    setting,
    metric,
    decoder as agent,
    seed,
    null::bigint as session_id,
    user_key,
    null::integer as page,
    value
from decoded
unpivot (value for metric in ("return", depth))
