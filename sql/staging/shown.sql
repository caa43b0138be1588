-- The showings of the range's sessions with the best feedback credited to them, when the first that is positive came
-- and when the last of all.
with outcomes as (
    select
        showing_id,
        max(code) as code,
        min(event_ts) filter (where code >= $click) as positive_ts,
        max(event_ts) as known_ts
    from credits
    group by showing_id
)
select
    showings.session_id, showings.start_ts, showings.user_id, showings.item_id, showings.event_id, showings.event_ts,
    showings.request_id, showings.position, showings.propensity,
    coalesce(outcomes.code, showings.code) as code,
    coalesce(outcomes.positive_ts, if(showings.code >= $click, showings.event_ts, null)) as positive_ts,
    coalesce(outcomes.known_ts, showings.event_ts) as known_ts
from showings
left join outcomes on outcomes.showing_id = showings.event_id
where showings.start_ts >= $first_start and showings.start_ts < $last_end
