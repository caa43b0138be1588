-- The events of the log in the order in which the later steps stream over them: each user's visits in time.
select
    * exclude (session_id, event_ts, event_type, value),
    session_id as own_id,
    epoch_us(event_ts) as us,
    event_type <> 'impression' as is_feedback,
    case
        when event_type = 'impression' then $skip
        when event_type in ('rating', 'watch') then if(value > $positive_above, $click, $skip)
        else list_position($feedback, event_type)
    end::tinyint as code
from session_log
order by user_id, own_id, us, event_id
