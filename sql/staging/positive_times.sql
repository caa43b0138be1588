-- When each positive impression became known as one: at its user's next act on the item, or with the impression itself
-- where the log keeps no such act (a rating that was read as a click is one).
with positives as (
    select distinct user_id, item_id, impression_ts, session_id, position from impressions where feedback <> 'skip'
),
acts as (
    select distinct user_id, item_id, event_ts
    from events
    where event_type in ('click', 'favorite', 'cart', 'purchase')
),
judgements as (
    select distinct user_id, item_id, event_ts from events where event_type in ('rating', 'watch')
)
select
    positives.item_id,
    -- Feedback is credited within a day of the session's start; what comes later belongs to something else.
    coalesce(
        if(acts.event_ts < positives.impression_ts + interval 24 hours, acts.event_ts, null),
        if(judgements.event_ts < positives.impression_ts + interval 24 hours, judgements.event_ts, null),
        positives.impression_ts
    ) as positive_ts
from positives
asof left join acts
    on positives.user_id = acts.user_id
    and positives.item_id = acts.item_id
    and positives.impression_ts <= acts.event_ts
asof left join judgements
    on positives.user_id = judgements.user_id
    and positives.item_id = judgements.item_id
    and positives.impression_ts <= judgements.event_ts
