-- A row is one seed of one agent in one setting: its metrics, averaged over the sessions (in roll-outs: the users).
select setting, agent, seed, avg(columns(* exclude (setting, agent, seed, unit, user_key)))
from measured
group by setting, agent, seed
order by setting, agent, seed
