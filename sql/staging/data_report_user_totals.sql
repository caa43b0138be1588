-- One user with sessions: how many, and how many of them started before the cold-start cut-off ($cut).
select
    hash(user_id) as user,
    count(*) as sessions,
    sum(impressions) as impressions,
    count(*) filter (where start_ts < $cut) as earlier
from sessions
group by user
