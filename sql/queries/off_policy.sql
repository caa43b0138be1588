-- Leg 3 by agent and estimator, its seeds together: the mean of their values, the widest of their intervals and the
-- worst of their diagnostics. No value unless every seed is supported; the reason is that of one seed which is not.
select
    agent,
    setting,
    estimator,
    avg(value) as value,
    min(ci_low) as ci_low,
    max(ci_high) as ci_high,
    avg(gain) as gain,
    min(gain_low) as gain_low,
    max(gain_high) as gain_high,
    max(n) as n,
    max(users) as users,
    count(*) as seeds,
    min(ess) as ess,
    max(tail_index) as tail_index,
    max(max_weight) as max_weight,
    arg_max(mean_weight, abs(mean_weight - 1)) as mean_weight,
    arg_max(mean_weight_error, abs(mean_weight - 1)) as mean_weight_error,
    max(clipped_share) as clipped_share,
    min(overlap) as overlap,
    bool_and(supported) as supported,
    coalesce(min(reason) filter (where not supported), '') as reason,
    max(temperature) as temperature,
    max(propensities) as propensities,
    max(pool) as pool
from ope
group by agent, setting, estimator
order by setting = 'page' desc, setting, estimator, value desc nulls last, agent
