-- Where every number of the leaderboard comes from: the data, code and settings that made it.
select
    agent,
    leg,
    setting,
    metric,
    value,
    n,
    seeds,
    data_hash,
    code_hash,
    config_hash,
    commit,
    versions
from leaderboard
order by agent, leg, setting, metric
