-- The rows that a point of an agent's validation curve is the mean of, in each seed; with $trial as the query trials
-- names it those of a trial of tuning, and with nothing (trial=) those of the learning curve. For example
-- agent=goalrec_off trial= step=250.
select agent, trial, seed, step, session_id, value
from validation_scores
where agent = $agent and coalesce(trial, '') = $trial and step = $step
order by seed, value, session_id
