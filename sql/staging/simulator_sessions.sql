-- One row a kept session of a split, $sessions at most: all that was shown in it, end to end. Whole pages are kept up
-- to $items items; a session that is cut there did not end by its user's will.
with pages as (
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
    where split = $split
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
limit $sessions
