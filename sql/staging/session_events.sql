-- Every row of session_rows with the session that it belongs to. A chain is a run of a user's events without a pause;
-- a chain's first $max_us are one session, what is left is cut at the UTC day and every $max_us of the day: a rule
-- that looks back two days at most, so that every range of partitions finds the same sessions. The rows are sorted, so
-- that windows over all of them stream: "rows unbounded preceding" is all that came before.
with spaced as (
    select
        *,
        coalesce(
            user_id <> lag(user_id) over () or own_id is distinct from lag(own_id) over ()
            or us - lag(us) over () > if(own_id is null, $gap_us, $max_us),
            true
        ) as is_chain
    from session_rows
),
chained as (
    select *, last_value(if(is_chain, us, null) ignore nulls) over (rows unbounded preceding) as chain_us
    from spaced
),
cut as (
    select
        * exclude (chain_us, day_us),
        if(us - chain_us < $max_us, chain_us, -(us - day_us % $max_us)) as piece  -- of the rest: of the other sign
    from (select *, us - epoch_us(make_timestamp(us)::date) as day_us from chained)
),
parted as (
    select *, coalesce(is_chain or piece <> lag(piece) over (), true) as is_session from cut
),
numbered as (
    select
        * exclude (is_chain, piece),
        last_value(if(is_session, us, null) ignore nulls) over (rows unbounded preceding) as start_us,
        (sum(is_session::integer) over (rows unbounded preceding))::bigint as session_number,
        row_number() over () as place,
        coalesce(lead(is_session) over () and not lead(is_chain) over (), false) as cut_after
    from parted
)
select
    (hash(start_us, user_id, own_id) >> 1)::bigint as session_id,
    make_timestamptz(start_us) as start_ts,
    make_timestamptz(us) as event_ts,
    * exclude (own_id)
from numbered
