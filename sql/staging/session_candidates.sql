-- One row a kept validation or test session: its distinct shown items in the order of their first showing, each with
-- the best that came of it, and what the ranker knew when the session started.
with shown as (
    select
        i.session_id,
        i.item_id,
        min(i.position) as position,
        max(codes.code) as feedback,
        max(i.reward) as reward,
        any_value(s.start_ts) as ts
    from impressions as i
    join sessions as s using (session_id)
    join codes on codes.name = i.feedback
    group by i.session_id, i.item_id
),
candidates as (
    select
        shown.session_id,
        list(coalesce(items.item, 0) order by shown.position) as items,
        list(key64(shown.item_id) order by shown.position) as item_keys,
        list(shown.position order by shown.position) as positions,
        list(shown.feedback order by shown.position) as feedback,
        list(shown.reward order by shown.position) as rewards,
        flatten(list(item_counters.counters order by shown.position)) as counters
    from shown
    join item_counters using (item_id, ts)
    left join items using (item_id)
    group by shown.session_id
)
select
    state.session_id,
    state.split,
    state."user",
    key64(state.user_id) as user_key,
    state.start_ts,
    state.user_features,
    state.initial_items,
    state.initial_feedback,
    candidates.items,
    candidates.item_keys,
    candidates.positions,
    candidates.feedback,
    candidates.rewards,
    candidates.counters
from page_states as state
join candidates using (session_id)
where state.step = 0 and state.split in ('validation', 'test')
order by state.start_ts, state.session_id
