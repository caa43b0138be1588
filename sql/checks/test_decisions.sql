-- Pages that policies are judged on although they are not of a test session, or of another user than their session.
with kept as (
    select session_id, split, key64(user_id) as user_key from session_splits
)
select distinct
    session_id,
    concat(
        'session ', session_id,
        case
            when kept.split is distinct from 'test' then concat(' of the ', coalesce(kept.split, 'dropped'), ' split is judged')
            else concat(' is the one of the user of key ', kept.user_key, ', not of ', decisions.user_key)
        end
    ) as reason
from decisions
left join kept using (session_id)
where kept.split is distinct from 'test' or kept.user_key <> decisions.user_key
order by session_id
