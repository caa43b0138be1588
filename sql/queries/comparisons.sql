-- Every RL agent against each of its controls in each world: the paired difference, its size among users, and whether
-- it is one that the rule accepts. The family rl_helps is what the verdict of that name reads.
select
    comparisons.agent,
    comparisons.against,
    comparisons.control,
    comparisons.leg,
    comparisons.setting,
    comparisons.metric,
    comparisons.value,
    comparisons.against_value,
    comparisons.difference,
    comparisons.difference_low,
    comparisons.difference_high,
    comparisons.effect_size,
    comparisons.share_better,
    comparisons.p_value,
    comparisons.p_adjusted,
    comparisons.difference > 0 and comparisons.p_adjusted < 0.05 as better,
    comparisons.family,
    comparisons.n,
    comparisons.users,
    comparisons.seeds,
    comparisons.seed_low,
    comparisons.seed_high
from comparisons
order by
    comparisons.agent,
    comparisons.family = 'rl_helps' desc,
    comparisons.leg desc,
    comparisons.setting = 'truth' desc,
    comparisons.setting,
    comparisons.control,
    comparisons.against
