-- What each user model was held against on sessions later than all it was fitted on; "passed" is null where a figure
-- is reported only. A user model with a false in it publishes no roll-outs.
select
    simulator_gate.simulator,
    simulator_gate.side,
    simulator_gate.head,
    simulator_gate.criterion,
    simulator_gate.value,
    simulator_gate.reference,
    simulator_gate.passed,
    simulator_gate.n
from simulator_gate
order by
    simulator_gate.side desc,
    simulator_gate.simulator,
    simulator_gate.passed is null,
    simulator_gate.passed,
    simulator_gate.head,
    simulator_gate.criterion
