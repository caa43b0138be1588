-- The visits that may go on over the instant $border: those with an event shortly before it and one shortly after.
with around as (
    select user_id, session_id, event_ts >= $border as is_after
    from events
    where event_ts >= $border - $longest_pause and event_ts < $border + $longest_pause
        and (session_id is not null or event_ts >= $border - $gap and event_ts < $border + $gap)
)
select user_id, session_id
from around
group by user_id, session_id
having bool_or(is_after) and not bool_and(is_after)
