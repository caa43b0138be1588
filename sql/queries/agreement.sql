-- How far every two columns of the leaderboard order the agents alike (Kendall's tau-b), the least alike first.
-- "opposed" counts the pairs of agents that they order oppositely, with the intervals apart in both.
select
    agreement.first_leg,
    agreement.first_setting,
    agreement.second_leg,
    agreement.second_setting,
    agreement.agents,
    agreement.tau,
    agreement.p_value,
    agreement.opposed,
    agreement.sentence
from agreement
order by
    agreement.tau,
    agreement.first_leg,
    agreement.first_setting,
    agreement.second_leg,
    agreement.second_setting
