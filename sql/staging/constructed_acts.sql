-- In a log without impressions, requests and slots: one row an item of a session, with all that its user did to it, in
-- the order in which the items were first acted on. The portable form of the same is showings, credits and shown.
with acts as (
    select
        session_number,
        hash(item_id) as item_hash,  -- a fixed width groups twice as fast; within one session two hashes never meet
        any_value(item_id) as item_id,
        min(place) as place,
        min(us) as us,
        max(code) as code,
        min(us) filter (where code >= $click) as positive_us,
        max(us) as known_us
    from session_events
    where start_us >= $first_us and start_us < $last_us
    group by session_number, item_hash
),
heads as (
    select session_number, session_id, start_us, user_id from session_events where is_session
)
select heads.session_id, heads.start_us, heads.user_id, acts.* exclude (item_hash)
from acts
join heads using (session_number)
order by place
