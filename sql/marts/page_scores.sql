-- One row a logged page under one agent, seed and slate estimator: what the page adds to the estimate, which is the mean
-- over pages. A page's weights are products of target / behaviour: over all slots (sips), up to a slot (rips, and with
-- a model cascade_dr), or of the slot alone (iips); sn_ divides a slot's weights by their mean over the pages.
with weighted as (
    select
        *,
        product(ratio) over (page order by slot) as prefix_weight,
        coalesce(product(ratio) over (page order by slot rows between unbounded preceding and 1 preceding), 1)
            as weight_before,
        product(ratio) over page as page_weight
    from ope_slots
    window page as (partition by agent, seed, session_id, step)
),
terms as (
    select agent, seed, session_id, user_key, step, slot, 'sips' as estimator, page_weight as weight, reward as gain
    from weighted
    union all
    select agent, seed, session_id, user_key, step, slot, 'iips', slot_weight, reward from weighted
    union all
    select agent, seed, session_id, user_key, step, slot, 'rips', prefix_weight, reward from weighted
    union all
    select agent, seed, session_id, user_key, step, slot, 'cascade_dr', prefix_weight, reward - q_logged from weighted
    union all
    select agent, seed, session_id, user_key, step, -slot, 'cascade_dr', weight_before, v_target from weighted
),
normalised as (
    select *, avg(weight) over (partition by agent, seed, estimator, slot) as mean_weight from terms
),
pages as (
    select
        agent,
        seed,
        session_id,
        user_key,
        step,
        estimator,
        sum(weight * gain) as plain,
        sum(coalesce(weight * gain / nullif(mean_weight, 0), 0)) as self_normalised
    from normalised
    group by agent, seed, session_id, user_key, step, estimator
)
select agent, seed, session_id, user_key, step as page, estimator, plain as value from pages
union all
select agent, seed, session_id, user_key, step as page, 'sn_' || estimator as estimator, self_normalised as value
from pages
