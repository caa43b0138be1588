-- The rows whose mean, seeds averaged first, is one number of the leaderboard, of the goals or of the decoders: a test
-- session (leg rerank), a user's episode (rollout, goals, decoding) or a logged page (ope) each, with what was measured
-- under each seed. For example agent=goalrec_off leg=rerank setting=paged metric=ndcg_reward_20, or
-- agent="goalrec_off (clicks)" leg=goals setting=truth metric=clicks
select leg, setting, metric, agent, seed, session_id, user_key, page, value
from scores
where agent = $agent and leg = $leg and setting = $setting and metric = $metric
order by session_id, user_key, page, seed
