-- Sessions whose totals are not those of their impressions, and impressions of no session.
with shown as (
    select
        session_id,
        count(*) as impressions,
        max(page) + 1 as pages,
        count(*) filter (where feedback <> 'skip') as clicks,
        count(*) filter (where feedback = 'purchase') as purchases,
        max(impression_ts) as last_ts
    from impressions
    group by session_id
)
select
    session_id,
    case
        when shown.session_id is null then concat('session ', session_id, ' shows nothing')
        when sessions.session_id is null
            then concat(shown.impressions, ' impressions name the unknown session ', session_id)
        when last_ts > end_ts
            then concat('session ', session_id, ' ends at ', end_ts, ', but shows an item at ', last_ts)
        else concat(
            'session ', session_id, ' counts ', sessions.impressions, ' impressions, ', sessions.pages, ' pages, ',
            sessions.clicks, ' clicks, ', sessions.purchases, ' purchases; its impressions are ',
            shown.impressions, ', ', shown.pages, ', ', shown.clicks, ', ', shown.purchases
        )
    end as reason
from sessions
full join shown using (session_id)
where
    (sessions.impressions, sessions.pages, sessions.clicks, sessions.purchases)
    is distinct from (shown.impressions, shown.pages, shown.clicks, shown.purchases)
    or last_ts > end_ts
order by session_id
