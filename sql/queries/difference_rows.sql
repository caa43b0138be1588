-- The rows behind one paired difference: every session, user or page that both agents were measured on, seeds averaged,
-- the largest difference first. Their mean is the difference. For example
-- agent=goalrec_off against=popularity leg=rerank setting=paged metric=ndcg_reward_20
select
    ours.leg,
    ours.setting,
    ours.metric,
    ours.agent,
    theirs.agent as against,
    ours.session_id,
    ours.user_key,
    ours.page,
    ours.seeds,
    ours.value,
    theirs.value as against_value,
    ours.value - theirs.value as difference
from unit_scores as ours
inner join unit_scores as theirs
    on
        theirs.leg = ours.leg
        and theirs.setting = ours.setting
        and theirs.metric = ours.metric
        and theirs.user_key = ours.user_key
        and theirs.session_id is not distinct from ours.session_id
        and theirs.page is not distinct from ours.page
where
    ours.agent = $agent
    and theirs.agent = $against
    and ours.leg = $leg
    and ours.setting = $setting
    and ours.metric = $metric
order by difference desc, ours.session_id, ours.user_key, ours.page
