-- The events of a log without impressions, requests and slots, with what pipeline/constructed.py asks of them: the visit
-- that each belongs to, the id of the session that would start with it, and the longest pause before it.
select
    user_id, item_id, event_id,
    hash(item_id) as item_key,  -- a fixed width: within one session two hashes never meet
    hash(user_id, session_id) as visit,
    epoch_us(event_ts) as us,
    (hash(epoch_us(event_ts), user_id, session_id) >> 1)::bigint as session_id,
    if(session_id is null, $gap_us, $max_us)::bigint as pause,
    case
        when event_type = 'impression' then $skip
        when event_type in ('rating', 'watch') then if(value > $positive_above, $click, $skip)
        else list_position($feedback, event_type)
    end::tinyint as code
from session_log
