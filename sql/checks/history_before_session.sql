-- Sessions whose ranker is told of something else than this: of the last $positives items that earlier sessions of the
-- user showed with positive feedback, those whose feedback had come before the session started. $sessions of them.
with told as (
    select
        session_id, user_id, start_ts,
        list_transform(
            list_filter(list_zip(initial_items, initial_feedback), lambda told: told[2] > 0), lambda told: told[1]
        ) as history
    from histories
    join sessions using (session_id)
    order by md5_number_lower(session_id::varchar)
    limit $sessions
),
earlier as (
    select
        told.session_id, told.start_ts, coalesce(items.item, 0) as item, i.positive_ts,
        row_number() over last_first as from_last
    from told
    join sessions as s on s.user_id = told.user_id and (s.start_ts, s.session_id) < (told.start_ts, told.session_id)
    join impressions as i on i.session_id = s.session_id and i.feedback <> 'skip'
    left join items on items.item_id = i.item_id
    window last_first as (
        partition by told.session_id order by s.start_ts desc, s.session_id desc, i.position desc
    )
),
known as (
    select session_id, list(item order by from_last desc) as history
    from earlier
    where from_last <= $positives and positive_ts < start_ts
    group by session_id
)
select
    session_id,
    concat(
        'session ', session_id, ' starts at ', start_ts, ' with the history ', coalesce(told.history, [])::varchar,
        ', but what its user had liked before is ', coalesce(known.history, [])::varchar
    ) as reason
from told
left join known using (session_id)
where coalesce(told.history, []) <> coalesce(known.history, [])
order by session_id
