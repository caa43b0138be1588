-- Every agent in every world of leg 2: means over episodes and seeds. Overestimation is what the agent's critic had
-- predicted at the first page minus what came, at the critic's own discount.
with coverages as (
    select coverage.setting, coverage.agent, avg(coverage.items_shown / coverage.items_known) as catalogue_coverage
    from coverage
    group by coverage.setting, coverage.agent
),
intervals as (
    select leaderboard.setting, leaderboard.agent, leaderboard.ci_low, leaderboard.ci_high
    from leaderboard
    where leaderboard.leg = 'rollout' and leaderboard.metric = 'return'
)
select
    episodes.setting,
    episodes.agent,
    episodes.episodes,
    episodes.seeds,
    episodes."return",
    intervals.ci_low,
    intervals.ci_high,
    episodes.return_variance,
    episodes.depth,
    episodes.ctr,
    episodes.purchases,
    episodes.predicted_return,
    episodes.discounted_return,
    episodes.overestimation,
    coverages.catalogue_coverage,
    episodes.diversity,
    episodes.repeat_rate,
    episodes.out_of_support,
    episodes.disagreement
from rollout_means as episodes
left join intervals on intervals.setting = episodes.setting and intervals.agent = episodes.agent
left join coverages on coverages.setting = episodes.setting and coverages.agent = episodes.agent
order by episodes.setting = 'truth' desc, episodes.setting, episodes."return" desc, episodes.agent
