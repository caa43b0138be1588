-- The rows that a user model's numbers under one head of the gate come from, for example simulator=rnn head=click: a
-- prediction for a shown item (head click), for a page (exit), for a shown item and a kind of answer (answer), with what
-- it is held against, or a simulated session beside the logged one (session).
select
    simulator,
    head,
    session_id,
    row,
    "group",
    predicted,
    observed,
    base_rate,
    popularity,
    members_mean,
    members_spread,
    null::integer as logged_pages,
    null::integer as simulated_pages,
    null::boolean as logged_ended,
    null::boolean as simulated_ended,
    null::double as logged_rate,
    null::double as simulated_rate
from simulator_answers
where simulator = $simulator and head = $head
union all by name
select
    simulator,
    'session' as head,
    session_id,
    twin as row,
    logged_pages,
    simulated_pages,
    logged_ended,
    simulated_ended,
    logged_rate,
    simulated_rate
from simulator_twins
where simulator = $simulator and $head = 'session'
order by row, "group"
