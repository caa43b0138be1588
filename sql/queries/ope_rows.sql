-- What the off-policy estimates of one agent are computed from: every filled slot of every logged page, by seed, with its
-- reward, the propensities of log and agent, and what the reward model expects. ope_recomputed makes the estimates of it.
select
    agent,
    seed,
    session_id,
    user_key,
    step,
    slot,
    reward,
    behaviour,
    target,
    ratio,
    behaviour_marginal,
    target_marginal,
    slot_weight,
    q_logged,
    v_target,
    fqe_weight,
    overlap
from ope_slots
where agent = $agent and filled
order by seed, session_id, step, slot
