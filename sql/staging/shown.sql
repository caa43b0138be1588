-- The showings of the range's sessions with the best feedback credited to them, and when the last of it was known.
with outcomes as (
    select showing_id, max(code) as code, max(event_ts) as known_ts from credits group by showing_id
)
select
    showings.session_id, showings.start_ts, showings.user_id, showings.item_id, showings.event_id, showings.event_ts,
    showings.request_id, showings.position, showings.propensity,
    coalesce(outcomes.code, showings.code) as code,
    coalesce(outcomes.known_ts, showings.event_ts) as known_ts
from showings
left join outcomes on outcomes.showing_id = showings.event_id
where showings.start_ts >= $first_start and showings.start_ts < $last_end
