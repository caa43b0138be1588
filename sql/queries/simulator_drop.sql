-- What is left of an agent's return when it leaves the train side's user model for one that was fitted on other
-- sessions: the drop from the first to the second, by kind of session, seeds averaged.
with agent_values as (
    select rollout.side, rollout.simulator, rollout.sessions, rollout.agent, avg(rollout."return") as value
    from rollout
    where rollout.side <> 'truth'
    group by rollout.side, rollout.simulator, rollout.sessions, rollout.agent
)
select
    trained.sessions,
    trained.agent,
    trained.simulator as train_simulator,
    trained.value as train_value,
    judged.simulator as judge_simulator,
    judged.value as judge_value,
    (judged.value - trained.value) / nullif(abs(trained.value), 0) as relative_drop
from agent_values as trained
inner join agent_values as judged on judged.agent = trained.agent and judged.sessions = trained.sessions
where trained.side = 'train' and judged.side = 'judge'
order by trained.sessions, trained.simulator, judged.simulator, judged.value desc, trained.agent
