-- One row a shown page of a kept session, with what the ranker knew just before it. Lists run from oldest to newest;
-- history and skips hold at most $positives items. Feedback as the numbers of the table codes.
with shown as (
    select
        i.session_id,
        i.user_id,
        i.page,
        i.position,
        i."row" * $cols + i.col as slot,
        coalesce(items.item, 0) as item,
        codes.code as feedback,
        i.reward,
        i.propensity
    from impressions as i
    join codes on codes.name = i.feedback
    left join items using (item_id)
),
pages as (
    select
        session_id,
        any_value(user_id) as user_id,
        page,
        list(item order by slot, position) as items,
        list(feedback order by slot, position) as feedback,
        list(slot order by slot, position) as slots,
        list(reward order by slot, position) as rewards,
        list(propensity order by slot, position) as propensities
    from shown
    group by session_id, page
),
ordered as (
    select
        pages.*,
        row_number() over (partition by pages.user_id order by s.start_ts, session_id, page) as page_number,
        max(page) over (partition by session_id) as last_page,
        s.start_ts,
        s.capped
    from pages
    join sessions as s using (session_id)
),
positives as (
    select
        o.user_id,
        o.page_number,
        list(shown.item) over newest as items,
        list(shown.feedback) over newest as feedback,
        row_number() over (partition by o.user_id, o.page_number order by shown.position desc) as from_last
    from shown
    join ordered as o using (session_id, page)
    where shown.feedback >= $first_positive
    window newest as (
        partition by o.user_id order by o.page_number, shown.position
        rows between ($positives - 1) preceding and current row
    )
),
skips as (
    select
        shown.session_id,
        shown.page,
        list(shown.item) over (
            partition by shown.session_id order by shown.position
            rows between ($positives - 1) preceding and current row
        ) as items,
        row_number() over (partition by shown.session_id, shown.page order by shown.position desc) as from_last
    from shown
    where shown.feedback = $skip
),
with_history as (
    select
        o.*,
        p.items as history_items,
        p.feedback as history_feedback
    from ordered as o
    asof left join (select * from positives where from_last = 1) as p
        on o.user_id = p.user_id and o.page_number > p.page_number
),
with_skips as (
    select h.*, k.items as skipped_items
    from with_history as h
    asof left join (select * from skips where from_last = 1) as k
        on h.session_id = k.session_id and h.page > k.page
)
select
    w.session_id,
    w.user_id,
    split.split,
    w.start_ts,
    coalesce(users.user, 0) as "user",
    users.features as user_features,
    row_number() over session - 1 as step,
    w.items as action,
    w.slots,
    w.feedback,
    w.rewards,
    w.propensities,
    first_value(w.history_items) over session as initial_items,
    first_value(w.history_feedback) over session as initial_feedback,
    w.history_items,
    w.history_feedback,
    w.skipped_items,
    w.page = w.last_page and not w.capped as terminated,
    w.page = w.last_page and w.capped as truncated
from with_skips as w
join session_splits as split using (session_id)
left join users on users.user_id = w.user_id
window session as (partition by w.session_id order by w.page)
