-- One row an episode of the goal sweep: of a trained model under one of its goals, or (goal is empty) of another ranker
-- on the same users.
select setting, agent, goal, seed, user_key, clicks, purchases, depth, "return"
from goal_sweep
union all
select setting, agent, '' as goal, seed, user_key, clicks, purchases, depth, "return"
from rollout
semi join goal_sweep using (setting, user_key)
anti join goal_sweep using (setting, agent)
