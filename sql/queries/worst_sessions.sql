-- The twenty test sessions in which $agent loses most against the reference (paged, NDCG with rewards at 20).
with reference as (
    select max(against) as agent from leaderboard
),
session_means as (
    select agent, session_id, user_key, value as ndcg_reward_20
    from unit_scores
    where leg = 'rerank' and setting = 'paged' and metric = 'ndcg_reward_20'
),
session_sizes as (
    select session_id, max(candidates) as candidates, max(positives) as positives
    from rerank
    group by session_id
)
select
    of_agent.session_id,
    of_agent.user_key,
    sessions.start_ts,
    session_sizes.candidates,
    session_sizes.positives,
    of_agent.ndcg_reward_20,
    of_reference.agent as reference,
    of_reference.ndcg_reward_20 as reference_ndcg_reward_20,
    of_agent.ndcg_reward_20 - of_reference.ndcg_reward_20 as difference
from session_means as of_agent
inner join session_means as of_reference on of_reference.session_id = of_agent.session_id
inner join reference on reference.agent = of_reference.agent
inner join session_sizes on session_sizes.session_id = of_agent.session_id
left join sessions on sessions.session_id = of_agent.session_id
where of_agent.agent = $agent
order by difference, of_agent.session_id
limit 20
