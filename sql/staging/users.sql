-- Every user with a session or whom the log describes. Indices and counts know the training window alone.
with described as (
    select user_id, features
    from described_users
    qualify row_number() over (partition by user_id order by features) = 1
),
trained as (
    select user_id, count(*) as sessions, row_number() over (order by user_id) as number
    from session_splits
    where split = 'train'
    group by user_id
),
known as (
    select user_id from sessions
    union
    select user_id from described
)
select
    user_id,
    key64(user_id) as user_key,
    coalesce(trained.number, 0) as user,
    features,
    coalesce(trained.sessions, 0) as train_sessions
from known
left join described using (user_id)
left join trained using (user_id)
order by user_id
