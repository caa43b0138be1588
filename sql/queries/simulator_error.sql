-- How far each user model's value of an agent lies from the truth, where the truth is known (the storefront), and
-- whether the user model passed its gate: how well the gate predicted it. Natural sessions, seeds averaged.
with gates as (
    select simulator_gate.simulator, bool_and(coalesce(simulator_gate.passed, true)) as passed_gate
    from simulator_gate
    group by simulator_gate.simulator
)
select
    fitted.simulator,
    fitted.side,
    gates.passed_gate,
    fitted.agent,
    fitted."return" as value,
    truth."return" as true_value,
    fitted."return" - truth."return" as error,
    (fitted."return" - truth."return") / nullif(abs(truth."return"), 0) as relative_error,
    rank() over (partition by fitted.simulator order by fitted."return" desc) as rank_in_simulator,
    rank() over (partition by fitted.simulator order by truth."return" desc) as true_rank
from rollout_means as fitted
inner join rollout_means as truth on truth.agent = fitted.agent and truth.side = 'truth'
inner join gates on gates.simulator = fitted.simulator
where fitted.sessions = 'natural'
order by fitted.simulator, truth."return" desc, fitted.agent
