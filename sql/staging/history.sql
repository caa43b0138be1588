-- The main figures of a leaderboard as the history keeps them.
select
    $published_at as published_at,
    $leaderboard as leaderboard,
    agent, leg, setting, metric, value, ci_low, ci_high, n, data_hash, code_hash, config_hash, commit
from agent_scores
order by metric_order, leg, setting, agent
