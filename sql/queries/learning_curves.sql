-- Mean and range over the seeds of every training metric, by gradient step.
select
    agent,
    metric,
    step,
    avg(value) as value,
    min(value) as lowest,
    max(value) as highest,
    count(distinct seed) as seeds
from training_log
group by agent, metric, step
order by metric, agent, step
