-- One row a kept session of a window, $sessions at most: all that was shown in it, end to end. Whole pages are kept up
-- to $items items; a session that is cut there did not end by its user's will. A window is a part of the training
-- sessions or of the later ones (validation and test), in the order of their starts: shares from $first to below $until.
with kept as (
    select session_id, split = 'train' as training, min(start_ts) as start_ts
    from page_states
    where split is not null
    group by session_id, split
),
placed as (
    select
        session_id,
        training,
        (row_number() over (partition by training order by start_ts, session_id) - 1)
        / count(*) over (partition by training) as share
    from kept
),
chosen as (
    select session_id
    from placed
    where training = $training and share >= $first and share < $until
    order by session_id
    limit $sessions
),
pages as (
    select
        session_id,
        step,
        action,
        feedback,
        user_features,
        initial_items,
        terminated,
        list_transform(range(len(action)), lambda slot: (slot = len(action) - 1)::tinyint) as page_end,
        sum(len(action)) over (partition by session_id order by step) as shown_so_far
    from page_states
    where session_id in (from chosen)
)
select
    session_id,
    flatten(list(action order by step)) as items,
    flatten(list(feedback order by step)) as feedback,
    flatten(list(page_end order by step)) as page_end,
    first(user_features order by step) as user_features,
    first(initial_items order by step) as initial_items,
    bool_or(terminated) as terminated
from pages
where step = 0 or shown_so_far <= $items
group by session_id
order by session_id
