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
),
episodes as (
    select
        rollout.setting,
        rollout.agent,
        count(*) as episodes,
        count(distinct rollout.seed) as seeds,
        avg(rollout."return") as "return",
        var_samp(rollout."return") as return_variance,
        avg(rollout.depth) as depth,
        sum(rollout.clicks) / nullif(sum(rollout.clicks / nullif(rollout.ctr, 0)), 0) as ctr,
        avg(rollout.purchases) as purchases,
        avg(rollout.predicted_return) as predicted_return,
        avg(rollout.discounted_return) as discounted_return,
        avg(rollout.overestimation) as overestimation,
        avg(rollout.diversity) as diversity,
        avg(rollout.repeat_rate) as repeat_rate,
        avg(rollout.out_of_support) as out_of_support,
        avg(rollout.disagreement) as disagreement
    from rollout
    group by rollout.setting, rollout.agent
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
from episodes
left join intervals on intervals.setting = episodes.setting and intervals.agent = episodes.agent
left join coverages on coverages.setting = episodes.setting and coverages.agent = episodes.agent
order by episodes.setting = 'truth' desc, episodes.setting, episodes."return" desc, episodes.agent
