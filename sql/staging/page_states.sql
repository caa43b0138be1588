-- One row a shown page of a kept session, with what the ranker knew just before it. Lists run from oldest to newest;
-- history and skips hold at most $positives items. A session starts with the feedback that had come by then, and sees
-- what comes of its own pages alone. Feedback as the numbers of the table codes.
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
        i.propensity,
        i.positive_ts
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
        list(shown.positive_ts) over newest as known_ts,
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
own_positives as (
    select
        shown.session_id,
        shown.page,
        list(shown.item) over newest as items,
        list(shown.feedback) over newest as feedback,
        row_number() over (partition by shown.session_id, shown.page order by shown.position desc) as from_last
    from shown
    where shown.feedback >= $first_positive
    window newest as (
        partition by shown.session_id order by shown.position rows between ($positives - 1) preceding and current row
    )
),
starts as (
    select o.session_id, list_filter(list_zip(p.items, p.feedback, p.known_ts), lambda past: past[3] < o.start_ts) as past
    from (select * from ordered qualify page = min(page) over (partition by session_id)) as o
    asof left join (select * from positives where from_last = 1) as p
        on o.user_id = p.user_id and o.page_number > p.page_number
),
initial as (
    select
        session_id,
        nullif(list_transform(past, lambda one: one[1]), []) as initial_items,
        nullif(list_transform(past, lambda one: one[2]), []) as initial_feedback
    from starts
),
with_initial as (
    select * from ordered join initial using (session_id)
),
with_history as (
    select
        o.*,
        list_concat(o.initial_items, p.items)[-$positives:] as history_items,
        list_concat(o.initial_feedback, p.feedback)[-$positives:] as history_feedback
    from with_initial as o
    asof left join (select * from own_positives where from_last = 1) as p
        on o.session_id = p.session_id and o.page > p.page
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
    w.page,
    coalesce(users.user, 0) as "user",
    users.features as user_features,
    row_number() over session - 1 as step,
    w.items as action,
    w.slots,
    w.feedback,
    w.rewards,
    w.propensities,
    w.initial_items,
    w.initial_feedback,
    w.history_items,
    w.history_feedback,
    w.skipped_items,
    w.page = w.last_page and not w.capped as terminated,
    w.page = w.last_page and w.capped as truncated
from with_skips as w
join session_splits as split using (session_id)
left join users on users.user_id = w.user_id
window session as (partition by w.session_id order by w.page)
