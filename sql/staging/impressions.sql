-- The shown items in their pages. A page is a request, or else $page_size items in the order of showing; a request of
-- more slots than a page has goes on over the next pages. Positions are used only where they tell all slots apart.
with placed as (
    select *, row_number() over (partition by session_id, request_id order by event_ts, event_id) - 1 as place
    from shown
),
blocked as (
    select *, if(request_id is null, place // $page_size, 0) as block
    from placed
),
judged as (
    select
        *,
        count(distinct position) over page_block = count(*) over page_block
        and min(position) over page_block >= 0
        and (request_id is not null or max(position) over page_block < $page_size) as is_slotted
    from blocked
    window page_block as (partition by session_id, request_id, block)
),
slotted as (
    select *, if(is_slotted, position, place - block * $page_size) as request_slot
    from judged
),
parted as (
    select
        * exclude (position),
        request_slot % $page_size as slot,
        block + request_slot // $page_size as part,
        min(event_ts) over (partition by session_id, request_id, block + request_slot // $page_size) as page_ts
    from slotted
),
paged as (
    select *, dense_rank() over (partition by session_id order by page_ts, request_id, part) - 1 as page
    from parted
)
select
    start_ts, session_id, user_id, item_id, page,
    slot // $cols as row,
    slot % $cols as col,
    row_number() over (partition by session_id order by page, slot) - 1 as position,
    code, ($feedback::feedback[])[code] as feedback, $rewards[code] as reward,
    propensity, page_ts,
    event_ts as impression_ts,
    positive_ts,
    known_ts
from paged
order by start_ts, session_id, position
