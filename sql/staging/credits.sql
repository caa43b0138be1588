-- Which showing a feedback event is credited to: the newest of its item at or before it, by user and request until
-- $max_us after the session's start, or by session where the event names no request. In a constructed log the act that
-- shows an item is feedback as well.
with feedback as (
    select * from session_events where $constructed or is_feedback
),
of_request as (
    select
        user_id, item_id, request_id, event_ts,
        min(event_id) as event_id,
        arg_min(start_ts, event_id) as start_ts
    from showings
    where request_id is not null
    group by user_id, item_id, request_id, event_ts
),
of_session as (
    select session_id, item_id, event_ts, min(event_id) as event_id from showings group by session_id, item_id, event_ts
)
select of_request.event_id as showing_id, feedback.event_id as feedback_id, feedback.code, feedback.event_ts
from feedback
asof join of_request
    on feedback.user_id = of_request.user_id
    and feedback.item_id = of_request.item_id
    and feedback.request_id = of_request.request_id
    and feedback.event_ts >= of_request.event_ts
where epoch_us(feedback.event_ts) - epoch_us(of_request.start_ts) < $max_us
union all
select of_session.event_id as showing_id, feedback.event_id as feedback_id, feedback.code, feedback.event_ts
from feedback
asof join of_session
    on feedback.session_id = of_session.session_id
    and feedback.item_id = of_session.item_id
    and feedback.event_ts >= of_session.event_ts
where feedback.request_id is null
