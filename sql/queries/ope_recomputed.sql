-- The slate estimates of leg 3 computed again in SQL, from the propensities and rewards of the logged pages, beside the
-- published ones. (The pseudo-inverse needs more than a page's own propensities and is not among them.)
with recomputed as (
    select agent, seed, estimator, count(*) as pages, avg(value) as recomputed
    from page_scores
    group by agent, seed, estimator
)
select
    recomputed.agent,
    recomputed.seed,
    recomputed.estimator,
    recomputed.pages,
    recomputed.recomputed,
    ope.value,
    recomputed.recomputed - ope.value as error,
    ope.supported
from recomputed
inner join ope
    on
        ope.setting = 'page'
        and ope.agent = recomputed.agent
        and ope.seed = recomputed.seed
        and ope.estimator = recomputed.estimator
order by recomputed.estimator, recomputed.agent, recomputed.seed
