-- What trajectories hold that is not of the training window: sessions, users, and items in any of their lists.
with trained as (
    select distinct items.item
    from impressions
    join session_splits using (session_id)
    join items using (item_id)
    where split = 'train'
),
mentioned as (
    select
        session_id,
        unnest(list_distinct(flatten([action, initial_items, history_items, skipped_items, page_items]))) as item
    from trajectories
),
foreign_items as (
    select item, min(session_id) as session_id from mentioned where item <> 0 and item not in (from trained) group by item
),
foreign_sessions as (
    select distinct trajectories.session_id, coalesce(split, 'dropped') as split
    from trajectories
    left join session_splits using (session_id)
    where split is distinct from 'train'
),
foreign_users as (
    select trajectories."user", min(trajectories.session_id) as session_id
    from trajectories
    left join users on users."user" = trajectories."user" and users.train_sessions > 0
    where users."user" is null
    group by trajectories."user"
)
select 1 as place, session_id, concat('session ', session_id, ' of the ', split, ' split is learnt from') as reason
from foreign_sessions
union all
select 2, session_id, concat('item ', item, ' in session ', session_id, ' is none that the training window shows')
from foreign_items
union all
select 3, session_id, concat('user ', "user", ' of session ', session_id, ' is none of the training window')
from foreign_users
order by place, session_id
