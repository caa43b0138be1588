-- The training log as it was written, of one agent: every metric of every seed and of every trial of tuning.
select agent, seed, step, metric, value
from training_log
where agent = $agent
order by metric, seed, step
