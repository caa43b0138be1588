-- What the rows that were read hold in all: one row.
with usable as (
    select * from sampled_facts where reason is null
),
visits as (
    select count(*) as facts from usable group by user_id, session_id
),
shown as (
    select distinct user_id, request_id, item_id from usable where event_type = 'impression' and request_id is not null
),
answers as (
    select user_id, request_id, item_id from usable where event_type <> 'impression' and request_id is not null
)
select
    (select count(distinct line) from sampled_facts) as records,
    (select count(*) from sampled_facts) as facts,
    (select count(*) from usable) as usable,
    (select count(*) from sampled_facts where reason = $outside) as outside,
    (select count(distinct user_id) from usable) as users,
    (select count(distinct item_id) from usable) as items,
    (select count(*) from visits) as visits,
    (select median(facts) from visits) as facts_a_visit,
    (select count(*) from usable where event_type = 'impression') as impressions,
    (select count(*) from usable where event_type in ('click', 'favorite', 'cart', 'purchase')) as actions,
    (select count(*) from usable where event_type in ('rating', 'watch')) as judgements,
    (select count(*) from usable where event_type in ('rating', 'watch') and value > $positive_above) as liked,
    (select count(*) from answers) as answers,
    (select count(*) from answers anti join shown using (user_id, request_id, item_id)) as unshown,
    (select quantile_disc(event_ts, 0.005) from sampled_facts where reason is null or reason = $outside) as early_ts,
    (select quantile_disc(event_ts, 0.995) from sampled_facts where reason is null or reason = $outside) as late_ts
