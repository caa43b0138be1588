-- The rows that one number of data_by_period counts. $period is a year, a month or a day, as long as the periods are:
-- 2026, 2026-01 or 2026-01-03; nothing for the whole log. For example subject=events name=click period=2026-01-03, or
-- subject=feedback name=skip, subject=sessions name=with_positive, subject=users name=new (or known: with events in it
-- and before), or subject=position name=click: the clicks that fill the column position, which a log may leave out.
with active as (
    select
        user_key,
        item_id,
        event_ts,
        starts_with(event_date::varchar, $period) as is_within,
        min(event_date) over (partition by user_key) as users_first,
        min(event_date) over (partition by item_id) as items_first
    from events
),
counted as (
    select 'events' as subject, event_type as name, event_ts as first_ts, user_key, item_id, null::bigint as session_id
    from events
    where starts_with(event_date::varchar, $period)
    union all
    select
        unnest(list_filter(
            [
                if(session_id is not null, 'session_id', null),
                if(request_id is not null, 'request_id', null),
                if(position is not null, 'position', null),
                if(propensity is not null, 'propensity', null),
                if(value is not null, 'value', null)
            ],
            lambda filled: filled is not null
        )),
        event_type,
        event_ts,
        user_key,
        item_id,
        null::bigint
    from events
    where starts_with(event_date::varchar, $period)
    union all
    select 'feedback', feedback, impression_ts, null::bigint, item_id, session_id
    from impressions
    where starts_with(strftime(impression_ts, '%Y-%m-%d'), $period)
    union all
    select 'sessions', if(clicks > 0, 'with_positive', 'without_positive'), start_ts, user_key, null::varchar, session_id
    from sessions
    where starts_with(strftime(start_ts, '%Y-%m-%d'), $period)
    union all
    select
        'users',
        if(starts_with(users_first::varchar, $period), 'new', 'known') as name,
        min(event_ts),
        user_key,
        null::varchar,
        null::bigint
    from active
    where is_within
    group by name, user_key
    union all
    select
        'items',
        if(starts_with(items_first::varchar, $period), 'new', 'known') as name,
        min(event_ts),
        null::bigint,
        item_id,
        null::bigint
    from active
    where is_within
    group by name, item_id
)
select subject, name, first_ts, user_key, item_id, session_id
from counted
where subject = $subject and name = $name
order by first_ts, user_key, item_id, session_id
