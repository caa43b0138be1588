-- One row an agent in one world of leg 2: means over its episodes and seeds.
select
    setting,
    side,
    simulator,
    sessions,
    agent,
    count(*) as episodes,
    count(distinct seed) as seeds,
    avg("return") as "return",
    var_samp("return") as return_variance,
    avg(depth) as depth,
    sum(clicks) / nullif(sum(clicks / nullif(ctr, 0)), 0) as ctr,
    avg(purchases) as purchases,
    avg(predicted_return) as predicted_return,
    avg(discounted_return) as discounted_return,
    avg(overestimation) as overestimation,
    avg(diversity) as diversity,
    avg(repeat_rate) as repeat_rate,
    avg(out_of_support) as out_of_support,
    avg(disagreement) as disagreement
from rollout
group by setting, side, simulator, sessions, agent
