-- How much of an agent's uncertainty is luck of the training seed: the spread of the seeds' means beside the
-- half-width of the interval over users. A ratio above 1 says: run more seeds before believing a difference.
with seed_means as (
    select leg, setting, metric, agent, seed, avg(value) as value
    from scores
    where (leg, metric) in (('rerank', 'ndcg_reward_20'), ('rollout', 'return'))
    group by leg, setting, metric, agent, seed
),
spread as (
    select
        leg,
        setting,
        metric,
        agent,
        count(*) as seeds,
        min(value) as lowest,
        max(value) as highest,
        stddev_samp(value) as seed_sd
    from seed_means
    group by leg, setting, metric, agent
)
select
    spread.agent,
    spread.leg,
    spread.setting,
    spread.metric,
    spread.seeds,
    spread.lowest,
    spread.highest,
    spread.seed_sd,
    (leaderboard.ci_high - leaderboard.ci_low) / 2 as user_half_width,
    spread.seed_sd / nullif((leaderboard.ci_high - leaderboard.ci_low) / 2, 0) as ratio
from spread
left join leaderboard
    on
        leaderboard.agent = spread.agent
        and leaderboard.leg = spread.leg
        and leaderboard.setting = spread.setting
        and leaderboard.metric = spread.metric
order by spread.leg desc, spread.setting, spread.agent
