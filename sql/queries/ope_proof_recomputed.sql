-- Every claim of ope_proof measured again in SQL from the estimates that it rests on, beside the published number. What
-- is measured: the share of supported intervals that hold the truth (coverage), the mean error in standard deviations
-- of an estimate (bias) or as a share of the truth (doubly_robust, visibly_biased), the slope of log RMSE in log n
-- (rmse_slope), the share of supported estimates (supported, refused), the estimate itself (on_policy), and, averaged
-- over logs, the rank correlation of the rankers' estimates with their truths (selection) and what is lost by taking
-- the best estimate, as a share of what lies between the best ranker and the worst (selection_regret).
with by_claim as (
    select
        claim,
        setting,
        estimator,
        target,
        count(*) as estimates,
        case claim
            when 'on_policy' then avg(value)
            when 'coverage' then avg((truth between ci_low and ci_high)::int) filter (where supported)
            when 'bias' then abs(avg(value - truth)) / stddev_pop(value)
            when 'doubly_robust' then abs(avg(value / truth) - 1)
            when 'visibly_biased' then abs(avg(value / truth) - 1)
            when 'supported' then avg(supported::int)
            when 'refused' then avg(supported::int)
        end as recomputed
    from ope_proof_logs
    where claim not in ('rmse_slope', 'selection', 'selection_regret')
    group by claim, setting, estimator, target
),
by_size as (
    select claim, setting, estimator, target, n, count(*) as estimates, sqrt(avg((value - truth) ** 2)) as rmse
    from ope_proof_logs
    where claim = 'rmse_slope'
    group by claim, setting, estimator, target, n
),
ranked as (
    select
        *,
        -- Of equal ones the mean of their places, as Spearman's correlation takes it.
        rank() over (log_of_claim order by value)
        + (count(*) over (partition by claim, setting, estimator, target, log, value) - 1) / 2 as estimated_rank,
        rank() over (log_of_claim order by truth)
        + (count(*) over (partition by claim, setting, estimator, target, log, truth) - 1) / 2 as true_rank
    from ope_proof_logs
    where claim in ('selection', 'selection_regret')
    window log_of_claim as (partition by claim, setting, estimator, target, log)
),
by_log as (
    select
        claim,
        setting,
        estimator,
        target,
        count(*) as estimates,
        corr(estimated_rank, true_rank) as rho,
        (max(truth) - arg_max(truth, value)) / (max(truth) - min(truth)) as regret
    from ranked
    group by claim, setting, estimator, target, log
),
recomputed as (
    select claim, setting, estimator, target, estimates, recomputed
    from by_claim
    union all
    select claim, setting, estimator, target, sum(estimates), regr_slope(ln(rmse), ln(n))
    from by_size
    group by claim, setting, estimator, target
    union all
    select
        claim,
        setting,
        estimator,
        target,
        sum(estimates),
        avg(case claim when 'selection' then rho else regret end)
    from by_log
    group by claim, setting, estimator, target
)
select
    claim,
    setting,
    estimator,
    target,
    recomputed.estimates::bigint as estimates,
    recomputed.recomputed,
    ope_proof.value,
    recomputed.recomputed - ope_proof.value as error
from ope_proof
left join recomputed using (claim, setting, estimator, target)
order by claim, setting, estimator, target
