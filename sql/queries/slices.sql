-- Re-ranking by slice: users new to the training window or known from it, and short or long sessions.
with session_means as (
    select
        agent,
        mode,
        session_id,
        user_key,
        max(candidates) as candidates,
        avg(ndcg_reward_20) as ndcg_reward_20
    from rerank
    where status = 'scored'
    group by agent, mode, session_id, user_key
),
sliced as (
    select
        session_means.agent,
        session_means.mode,
        session_means.ndcg_reward_20,
        if(coalesce(users.train_sessions, 0) = 0, 'new', 'returning') as user_slice,
        case
            when session_means.candidates <= 20 then '1-20 items'
            when session_means.candidates <= 50 then '21-50 items'
            else 'over 50 items'
        end as length_slice
    from session_means
    left join users on users.user_key = session_means.user_key
),
long as (
    select agent, mode, 'user' as dimension, user_slice as slice, ndcg_reward_20 from sliced
    union all
    select agent, mode, 'session length' as dimension, length_slice as slice, ndcg_reward_20 from sliced
)
select
    agent,
    mode,
    dimension,
    slice,
    avg(ndcg_reward_20) as ndcg_reward_20,
    count(*) as n
from long
group by agent, mode, dimension, slice
order by dimension, slice, mode, ndcg_reward_20 desc, agent
