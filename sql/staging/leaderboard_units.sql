-- A row is one session (in roll-outs: one user) of one agent in one setting: its metrics, averaged over the seeds.
select unit, user_key, avg(columns(* exclude (setting, agent, seed, unit, user_key)))
from measured
where setting = $setting and agent = $agent
group by unit, user_key
order by unit, user_key
