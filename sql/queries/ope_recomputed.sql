-- The estimates of leg 3 computed again in SQL, from the propensities and rewards of the logged pages, beside the
-- published ones, but for the pseudo-inverse, which is never estimated.
-- Of a slot: ips = mean of w·r, snips = Σ w·r / Σ w, dr = mean of v + w·(r − q), sn_dr = mean of v + Σ w·(r − q) / Σ w.
-- Of a session the same step by step, with weights multiplied over its pages; one that has ended keeps its weight. FQE, a
-- linear regression, is a weighted sum of the rewards: its weights are given, for they need a matrix's inverse.
with kinds as (
    select agent, seed, any_value(propensities) as propensities
    from ope
    group by agent, seed
),
slots as (
    select ope_slots.*, if(kinds.propensities = 'logged by slot', slot_weight, ratio) as weight
    from ope_slots
    inner join kinds on kinds.agent = ope_slots.agent and kinds.seed = ope_slots.seed
    where filled
),
by_slot as (
    select
        agent,
        seed,
        count(*) as n,
        avg(weight * reward) as ips,
        sum(weight * reward) / nullif(sum(weight), 0) as snips,
        avg(v_target) + avg(weight * (reward - q_logged)) as dr,
        avg(v_target) + sum(weight * (reward - q_logged)) / nullif(sum(weight), 0) as sn_dr
    from slots
    group by agent, seed
),
pages as (
    select
        agent,
        seed,
        session_id,
        step,
        product(target / behaviour) as ratio,
        sum(reward) as reward,
        sum(q_logged) as q,
        sum(v_target) as v,
        count(*) over session as known,
        max(step) over session as last
    from ope_slots
    group by agent, seed, session_id, step
    window session as (partition by agent, seed, session_id)
),
sessions as (
    select agent, seed, session_id, max(last) as last
    from pages
    where known = last + 1 -- a session of which a page is not known is left out
    group by agent, seed, session_id
),
steps as (
    select
        sessions.agent,
        sessions.seed,
        sessions.session_id,
        every.step,
        coalesce(pages.reward, 0) as reward,
        coalesce(pages.q, 0) as q,
        coalesce(pages.v, 0) as v,
        product(coalesce(pages.ratio, 1)) over (
            partition by sessions.agent, sessions.seed, sessions.session_id order by every.step
        ) as weight
    from sessions
    cross join (select unnest(range(max(last) + 1)) as step from sessions) as every
    left join pages
        on
            pages.agent = sessions.agent
            and pages.seed = sessions.seed
            and pages.session_id = sessions.session_id
            and pages.step = every.step
),
weighted as (
    select *, coalesce(lag(weight) over (partition by agent, seed, session_id order by step), 1) as weight_before
    from steps
),
by_step as (
    select
        agent,
        seed,
        step,
        count(*) as n,
        avg(weight * reward) as pdis,
        sum(weight * reward) / nullif(sum(weight), 0) as wis,
        avg(weight * (reward - q) + weight_before * v) as dr,
        coalesce(sum(weight * (reward - q)) / nullif(sum(weight), 0), 0)
        + coalesce(sum(weight_before * v) / nullif(sum(weight_before), 0), 0) as sn_dr
    from weighted
    group by agent, seed, step
),
by_session as (
    select agent, seed, max(n) as n, sum(pdis) as pdis, coalesce(sum(wis), 0) as wis, sum(dr) as dr, sum(sn_dr) as sn_dr
    from by_step
    group by agent, seed
),
by_regression as (
    select agent, seed, count(distinct session_id) as n, sum(fqe_weight * reward) / n as fqe
    from ope_slots
    where fqe_weight is not null
    group by agent, seed
),
recomputed as (
    select 'page' as setting, agent, seed, estimator, count(*) as n, avg(value) as recomputed
    from page_scores
    group by agent, seed, estimator
    union all
    select 'slot' as setting, agent, seed, estimator, n, recomputed
    from by_slot
    unpivot (recomputed for estimator in (ips, snips, dr, sn_dr))
    union all
    select 'session' as setting, agent, seed, estimator, n, recomputed
    from by_session
    unpivot (recomputed for estimator in (pdis, wis, dr, sn_dr))
    union all
    select 'session' as setting, agent, seed, 'fqe' as estimator, n, fqe as recomputed
    from by_regression
)
select
    recomputed.setting,
    recomputed.agent,
    recomputed.seed,
    recomputed.estimator,
    recomputed.n,
    recomputed.recomputed,
    ope.value,
    recomputed.recomputed - ope.value as error,
    ope.supported
from recomputed
inner join ope
    on
        ope.setting = recomputed.setting
        and ope.agent = recomputed.agent
        and ope.seed = recomputed.seed
        and ope.estimator = recomputed.estimator
order by recomputed.setting, recomputed.estimator, recomputed.agent, recomputed.seed
