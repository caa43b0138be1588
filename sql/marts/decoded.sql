-- One row an episode under a greedy or a looking-ahead decoder; in the truth the two oracles stand for them.
select setting, decoder, null::integer as seed, user_key, "return", depth
from decoding
union all
select setting, agent as decoder, seed, user_key, "return", depth
from rollout
where setting = 'truth' and agent in ('oracle_myopic', 'oracle_farsighted')
