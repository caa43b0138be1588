-- The constructed showings in their pages: $page_size items each, in the order in which they were first acted on. The
-- rows of constructed_acts are sorted, so that windows over all of them stream.
with numbered as (
    select *, row_number() over () as number, session_number is distinct from lag(session_number) over () as is_start
    from constructed_acts
),
positioned as (
    select
        *, number - last_value(if(is_start, number, null) ignore nulls) over (rows unbounded preceding) as position
    from numbered
),
paged as (
    select
        *,
        last_value(if(position % $page_size = 0, us, null) ignore nulls) over (rows unbounded preceding) as page_us
    from positioned
)
select
    make_timestamptz(start_us) as start_ts,
    session_id, user_id, item_id,
    position // $page_size as page,
    position % $page_size // $cols as row,
    position % $page_size % $cols as col,
    position,
    code, ($feedback::feedback[])[code] as feedback, $rewards[code] as reward,
    null::double as propensity,
    make_timestamptz(page_us) as page_ts,
    make_timestamptz(us) as impression_ts,
    make_timestamptz(positive_us) as positive_ts,
    make_timestamptz(known_us) as known_ts
from paged
