-- Mean and range over the seeds of every training metric, by gradient step. The trials of tuning are in the query trials.
select
    agent,
    metric,
    step,
    avg(value) as value,
    min(value) as lowest,
    max(value) as highest,
    count(distinct seed) as seeds
from training_log
where metric not like 'trial %'
group by agent, metric, step
order by metric, agent, step
