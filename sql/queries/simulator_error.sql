-- How far each user model's value of an agent lies from the truth, where the truth is known (the storefront), and
-- whether the user model passed its gate: how well the gate predicted it. Natural sessions, seeds averaged.
with agent_values as (
    select rollout.side, rollout.simulator, rollout.agent, avg(rollout."return") as value
    from rollout
    where rollout.sessions = 'natural'
    group by rollout.side, rollout.simulator, rollout.agent
),
gates as (
    select simulator_gate.simulator, bool_and(coalesce(simulator_gate.passed, true)) as passed_gate
    from simulator_gate
    group by simulator_gate.simulator
)
select
    fitted.simulator,
    fitted.side,
    gates.passed_gate,
    fitted.agent,
    fitted.value,
    truth.value as true_value,
    fitted.value - truth.value as error,
    (fitted.value - truth.value) / nullif(abs(truth.value), 0) as relative_error,
    rank() over (partition by fitted.simulator order by fitted.value desc) as rank_in_simulator,
    rank() over (partition by fitted.simulator order by truth.value desc) as true_rank
from agent_values as fitted
inner join agent_values as truth on truth.agent = fitted.agent and truth.side = 'truth'
inner join gates on gates.simulator = fitted.simulator
order by fitted.simulator, truth.value desc, fitted.agent
