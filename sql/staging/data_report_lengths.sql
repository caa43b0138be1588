-- How many sessions (users, items) have one length: each measure's whole distribution as a small table.
select 'impressions_of_a_session' as measure, impressions::bigint as length, count(*) as n
from sessions
group by length
union all
select 'pages_of_a_session', pages::bigint as length, count(*)
from sessions
group by length
union all
select 'minutes_of_a_session', (epoch_us(end_ts) - epoch_us(start_ts)) // 60_000_000 as length, count(*)
from sessions
group by length
union all
select 'sessions_of_a_user', sessions as length, count(*)
from user_totals
group by length
union all
select 'impressions_of_a_user', impressions::bigint as length, count(*)
from user_totals
group by length
union all
select 'impressions_of_an_item', impressions as length, count(*)
from item_totals
group by length
