-- One row a slot of a logged page under one agent and seed: its reward, the propensities of both policies, and what the
-- reward model expects. ratio is target / behaviour given the slots above; slot_weight that of the slot alone. In an
-- empty slot, which adds nothing, filled is false.
with slots as (
    select
        agent,
        seed,
        session_id,
        user_key,
        step,
        generate_subscripts(reward, 1) as slot,
        unnest(filled) as filled,
        unnest(reward) as reward,
        unnest(behaviour) as behaviour,
        unnest(target) as target,
        unnest(behaviour_marginal) as behaviour_marginal,
        unnest(target_marginal) as target_marginal,
        unnest(q_logged) as q_logged,
        unnest(v_target) as v_target,
        fqe_weight,
        overlap
    from ope_pages
)
select *, target / behaviour as ratio, target_marginal / behaviour_marginal as slot_weight
from slots
