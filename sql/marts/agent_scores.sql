-- One row a figure of the leaderboard that decides: the main metrics of each leg; of the roll-outs, in the truth and in
-- natural sessions of user models that may judge. Metrics are in the order of metric_order.
with main_metrics (leg, metric, metric_order) as (
    values ('rollout', 'return', 1), ('rerank', 'ndcg_reward_20', 2), ('rerank', 'map', 3), ('ope', 'value', 4)
)
select
    leaderboard.agent,
    leaderboard.leg,
    leaderboard.setting,
    leaderboard.metric,
    main_metrics.metric_order,
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
    leaderboard.p_value,
    leaderboard.data_hash,
    leaderboard.code_hash,
    leaderboard.config_hash,
    leaderboard.commit
from leaderboard
inner join main_metrics on main_metrics.leg = leaderboard.leg and main_metrics.metric = leaderboard.metric
where leaderboard.leg <> 'rollout' or leaderboard.setting = 'truth' or leaderboard.setting like 'judge/%/natural'
