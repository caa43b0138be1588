-- What was shown: the log's impressions, each item of a request once. In a log without impressions an item is shown
-- when its user first acts on it in a session (on a request, where the log has those).
select session_id, start_ts, user_id, item_id, event_id, event_ts, request_id, position, propensity, code
from session_events
where $constructed or not is_feedback
qualify row_number() over (
    partition by session_id, item_id, request_id, if(request_id is null and not $constructed, event_ts, null)
    order by event_ts, event_id
) = 1
