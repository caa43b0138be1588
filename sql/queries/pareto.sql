-- What each ranker reaches of what may be wished for, one row a world, agent and goal: an agent with goals under each of
-- its goals, every other agent (goal is empty) beside it, on the same users. Intervals are the normal approximation over
-- users, their seeds averaged first. A row is on the front where no other of its world is as good in clicks, purchases
-- and depth and better in one; oracles see the truth, so they are left out of that comparison.
with by_user as (
    select
        setting,
        agent,
        goal,
        user_key,
        count(*) as seeds,
        avg(clicks) as clicks,
        avg(purchases) as purchases,
        avg(depth) as depth,
        avg("return") as "return"
    from goal_episodes
    group by setting, agent, goal, user_key
),
points as (
    select
        setting,
        agent,
        goal,
        starts_with(agent, 'oracle_') as oracle,
        count(*) as users,
        max(seeds) as seeds,
        avg(clicks) as clicks,
        avg(purchases) as purchases,
        avg(depth) as depth,
        avg("return") as "return",
        -- One user gives no variance between users, hence null.
        1.959964 * stddev_samp(clicks) / sqrt(count(*)) as clicks_half,
        1.959964 * stddev_samp(purchases) / sqrt(count(*)) as purchases_half,
        1.959964 * stddev_samp(depth) / sqrt(count(*)) as depth_half,
        1.959964 * stddev_samp("return") / sqrt(count(*)) as return_half
    from by_user
    group by setting, agent, goal
)
select
    setting,
    agent,
    goal,
    users,
    seeds,
    clicks,
    clicks - clicks_half as clicks_low,
    clicks + clicks_half as clicks_high,
    purchases,
    purchases - purchases_half as purchases_low,
    purchases + purchases_half as purchases_high,
    depth,
    depth - depth_half as depth_low,
    depth + depth_half as depth_high,
    "return",
    "return" - return_half as return_low,
    "return" + return_half as return_high,
    case when not oracle then not exists (
        select 1
        from points as other
        where other.setting = points.setting
            and not other.oracle
            and other.clicks >= points.clicks
            and other.purchases >= points.purchases
            and other.depth >= points.depth
            and (other.clicks > points.clicks or other.purchases > points.purchases or other.depth > points.depth)
    ) end as on_front
from points
order by setting = 'truth' desc, setting, "return" desc, agent, goal
