-- Features of a sample of impressions that differ from a plain count of what lay strictly before them. Needs the
-- impressions and events of eight days before the features.
with sampled as (
    select *
    from features
    order by hash(session_id, position)
    limit $sample
),
windows as (
    select 'item_impressions_1h' as feature, 1 as hours, true as of_impressions
    union all select 'item_impressions_6h', 6, true
    union all select 'item_impressions_24h', 24, true
    union all select 'item_impressions_1w', 168, true
    union all select 'item_positives_1h', 1, false
    union all select 'item_positives_6h', 6, false
    union all select 'item_positives_24h', 24, false
    union all select 'item_positives_1w', 168, false
),
published as (
    unpivot (
        select session_id, position, item_id, impression_ts, columns('^item_(impressions|positives)_') from sampled
    )
    on columns('^item_(impressions|positives)_') into name feature value published_count
),
past as (
    select item_id, impression_ts as ts, true as of_impressions from impressions
    union all
    select item_id, positive_ts, false from positive_times
),
recounted as (
    select
        published.session_id, published.position, published.feature, published.published_count,
        count(past.ts) as true_count
    from published
    join windows using (feature)
    left join past
        on past.item_id = published.item_id
        and past.of_impressions = windows.of_impressions
        and past.ts < published.impression_ts
        and past.ts >= published.impression_ts - to_hours(windows.hours)
    group by published.session_id, published.position, published.feature, published.published_count
)
select
    session_id, position, feature,
    concat(
        feature, ' of impression ', position, ' in session ', session_id, ' is ', published_count,
        ', but ', true_count, ' lie strictly before it'
    ) as reason
from recounted
where published_count <> true_count
order by session_id, position, feature
