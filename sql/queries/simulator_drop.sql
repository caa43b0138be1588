-- What is left of an agent's return when it leaves the train side's user model for one that was fitted on other
-- sessions: the drop from the first to the second, by kind of session, seeds averaged.
select
    trained.sessions,
    trained.agent,
    trained.simulator as train_simulator,
    trained."return" as train_value,
    judged.simulator as judge_simulator,
    judged."return" as judge_value,
    (judged."return" - trained."return") / nullif(abs(trained."return"), 0) as relative_drop
from rollout_means as trained
inner join rollout_means as judged on judged.agent = trained.agent and judged.sessions = trained.sessions
where trained.side = 'train' and judged.side = 'judge'
order by trained.sessions, trained.simulator, judged.simulator, judged."return" desc, trained.agent
