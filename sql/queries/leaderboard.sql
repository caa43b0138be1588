-- Every agent on the main metric of each leg, best first within a leg and setting; of the roll-outs, the truth and
-- natural sessions in user models that may judge (all others are in the query rollouts).
-- Differences are paired, on the same sessions or users, against the agent in "against"; p is Holm-corrected.
select
    agent,
    leg,
    setting,
    metric,
    value,
    ci_low,
    ci_high,
    n,
    users,
    seeds,
    against,
    difference,
    difference_low,
    difference_high,
    p_value
from agent_scores
order by metric_order, setting = 'truth' desc, setting desc, value desc nulls last, agent
