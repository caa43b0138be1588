-- Users that know another window than the training one: their index and their number of sessions.
with trained as (
    select user_id, count(*) as sessions
    from session_splits
    where split = 'train'
    group by user_id
)
select
    key64(users.user_id) as user_key,
    concat(
        'the user of key ', key64(users.user_id),
        case
            when trained.user_id is null and users."user" > 0
                then ' has an index, but no session in the training window'
            when users."user" = 0 and trained.user_id is not null
                then ' has a session in the training window, but no index'
            else concat(
                ' counts ', users.train_sessions, ' sessions, but the training window has ', coalesce(trained.sessions, 0)
            )
        end
    ) as reason
from users
left join trained using (user_id)
where
    (users."user" > 0) <> (trained.user_id is not null)
    or users.train_sessions <> coalesce(trained.sessions, 0)
order by user_key
