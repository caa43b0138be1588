-- What an agreement between two columns of the leaderboard is computed from: the agents that both know, with the value and
-- interval that each gives. For example
-- first_leg=rollout first_setting=truth second_leg=rerank second_setting=paged
select
    agreement.first_leg,
    agreement.first_setting,
    agreement.second_leg,
    agreement.second_setting,
    ours.agent,
    ours.metric as first_metric,
    ours.value as first_value,
    ours.ci_low as first_low,
    ours.ci_high as first_high,
    theirs.metric as second_metric,
    theirs.value as second_value,
    theirs.ci_low as second_low,
    theirs.ci_high as second_high,
    agreement.tau
from agreement
inner join agent_scores as ours on ours.leg = agreement.first_leg and ours.setting = agreement.first_setting
inner join agent_scores as theirs
    on
        theirs.leg = agreement.second_leg
        and theirs.setting = agreement.second_setting
        and theirs.agent = ours.agent
where
    agreement.first_leg = $first_leg
    and agreement.first_setting = $first_setting
    and agreement.second_leg = $second_leg
    and agreement.second_setting = $second_setting
    and ours.metric <> 'map'
    and theirs.metric <> 'map'
order by first_value desc, ours.agent
