-- Every event near the range with the session that it belongs to. A chain is a run of a user's events without a pause;
-- a chain's first $max_us are one session, what is left is cut at the UTC day and every $max_us of the day: a rule
-- that looks back two days at most, so that every range of partitions finds the same sessions.
with timed as (
    select
        event_id, user_id, item_id, event_ts, event_type, request_id, position, propensity,
        session_id as own_id,
        epoch_us(event_ts) as us,
        case
            when event_type = 'impression' then $skip
            when event_type in ('rating', 'watch') then if(value > $positive_above, $click, $skip)
            else list_position($feedback, event_type)
        end as code,
        if(session_id is null, $gap_us, $max_us) as pause_us
    from events
    where event_ts >= $read_from and event_ts < $read_until
),
spaced as (
    select *, lag(us) over (partition by user_id, own_id order by us, event_id) as previous_us
    from timed
),
chained as (
    select
        * exclude (previous_us, pause_us),
        max(if(previous_us is null or us - previous_us > pause_us, us, null))
            over (partition by user_id, own_id order by us, event_id) as chain_us
    from spaced
),
cut as (
    select
        *,
        us - chain_us >= $max_us as is_rest,
        if(us - chain_us < $max_us, chain_us, us - us % 86_400_000_000 % $max_us) as piece_us
    from chained
),
bounded as (
    select
        *,
        min(us) over (partition by user_id, own_id, is_rest, piece_us) as start_us,
        coalesce(
            lead(chain_us) over chain = chain_us
            and (lead(is_rest) over chain, lead(piece_us) over chain) <> (is_rest, piece_us),
            false
        ) as cut_after
    from cut
    window chain as (partition by user_id, own_id order by us, event_id)
)
select
    -- Lengths and marks keep apart what would read the same when joined.
    key64(concat(start_us, ':', length(user_id), ':', user_id, '=' || own_id)) as session_id,
    make_timestamp(start_us)::timestamptz as start_ts,
    event_id, user_id, item_id, event_ts, event_type, code::tinyint as code, request_id, position, propensity, cut_after
from bounded
