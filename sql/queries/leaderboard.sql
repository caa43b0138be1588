-- Every agent on the main metric of each leg, best first within a leg and setting; of the roll-outs, the truth and
-- natural sessions in user models that may judge (all others are in the query rollouts).
-- Differences are paired, on the same sessions or users, against the agent in "against"; p is Holm-corrected.
with main_metrics (leg, metric, metric_order) as (
    values ('rollout', 'return', 1), ('rerank', 'ndcg_reward_20', 2), ('rerank', 'map', 3), ('ope', 'value', 4)
)
select
    leaderboard.agent,
    leaderboard.leg,
    leaderboard.setting,
    leaderboard.metric,
    leaderboard.value,
    leaderboard.ci_low,
    leaderboard.ci_high,
    leaderboard.n,
    leaderboard.users,
    leaderboard.seeds,
    leaderboard.against,
    leaderboard.difference,
    leaderboard.difference_low,
    leaderboard.difference_high,
    leaderboard.p_value
from leaderboard
inner join main_metrics on main_metrics.leg = leaderboard.leg and main_metrics.metric = leaderboard.metric
where leaderboard.leg <> 'rollout' or leaderboard.setting = 'truth' or leaderboard.setting like 'judge/%/natural'
order by
    main_metrics.metric_order,
    leaderboard.setting = 'truth' desc,
    leaderboard.setting desc,
    leaderboard.value desc nulls last,
    leaderboard.agent
