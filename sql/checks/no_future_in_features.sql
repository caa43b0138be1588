-- Features of a sample of impressions that differ from a plain recount of what lay strictly before them. Needs the
-- impressions of eight days before the features.
with shown as (
    select
        impressions.session_id, impressions.position, impressions.user_id, impressions.item_id, impressions.page,
        impressions.impression_ts as ts,
        category, brand, shop, listed_ts
    from sampled
    join impressions using (session_id, position)
    left join catalogue on catalogue.item = hash(impressions.item_id)
),
past_of_items as (
    select item_id, ts, positive > 0 as is_positive
    from facts
    where item_id in (select item_id from shown)
),
past_of_users as (
    select user_id, item_id, ts, positive > 0 as is_positive, category, brand, shop
    from facts
    left join catalogue on catalogue.item = hash(facts.item_id)
    where user_id in (select user_id from shown)
),
windows as (
    select unnest(['1h', '6h', '24h', '1w']) as name, unnest([1, 6, 24, 168]) as hours
),
asked as (
    select shown.*, name, ts - to_hours(hours) as since from shown, windows
),
of_items as (
    select
        asked.session_id, asked.position, asked.name, asked.ts,
        count(*) filter (where not is_positive) as impressions,
        count(*) filter (where is_positive) as positives,
        min(past.ts) filter (where not is_positive) as first_ts
    from asked
    left join past_of_items as past on past.item_id = asked.item_id and past.ts < asked.ts and past.ts >= asked.since
    group by asked.session_id, asked.position, asked.name, asked.ts
),
of_users as (
    select
        asked.session_id, asked.position, asked.name, asked.category, asked.brand, asked.shop,
        count(*) filter (where not is_positive) as impressions,
        count(*) filter (where is_positive) as positives,
        count(distinct past.category) filter (where is_positive) as categories,
        count(*) filter (where not is_positive and past.item_id = asked.item_id) as of_item,
        count(*) filter (where is_positive and past.item_id = asked.item_id) as positives_of_item,
        count(*) filter (where is_positive and past.category = asked.category) as of_category,
        count(*) filter (where is_positive and past.brand = asked.brand) as of_brand,
        count(*) filter (where is_positive and past.shop = asked.shop) as of_shop
    from asked
    left join past_of_users as past on past.user_id = asked.user_id and past.ts < asked.ts and past.ts >= asked.since
    group by asked.session_id, asked.position, asked.name, asked.category, asked.brand, asked.shop
),
recounted as (
    select session_id, position, 'item_impressions_' || name as feature, impressions as value from of_items
    union all
    select session_id, position, 'item_positives_' || name, positives from of_items
    union all
    select session_id, position, 'item_ctr_' || name, coalesce(positives / nullif(impressions, 0), 0) from of_items
    union all
    select session_id, position, 'item_age_hours', (epoch_us(ts) - epoch_us(first_ts)) / 3_600_000_000
    from of_items
    where name = '1w'
    union all
    select session_id, position, 'user_impressions_' || name, impressions from of_users
    union all
    select session_id, position, 'user_positives_' || name, positives from of_users
    union all
    select session_id, position, 'user_categories_' || name, categories from of_users
    union all
    select session_id, position, 'user_item_impressions_1w', of_item from of_users where name = '1w'
    union all
    select session_id, position, 'user_item_positives_1w', positives_of_item from of_users where name = '1w'
    union all
    select session_id, position, 'user_category_positives_1w', if(category is null, null, of_category)
    from of_users
    where name = '1w'
    union all
    select session_id, position, 'user_brand_positives_1w', if(brand is null, null, of_brand)
    from of_users
    where name = '1w'
    union all
    select session_id, position, 'user_shop_positives_1w', if(shop is null, null, of_shop)
    from of_users
    where name = '1w'
    union all
    select session_id, position, 'context_hour', hour(ts) from shown
    union all
    select session_id, position, 'context_weekday', isodow(ts) - 1 from shown
    union all
    select session_id, position, 'context_page', page from shown
    union all
    select session_id, position, 'context_position', position from shown
    union all
    select
        session_id, position, 'context_freshness_hours',
        if(listed_ts <= ts, (epoch_us(ts) - epoch_us(listed_ts)) / 3_600_000_000, null)
    from shown
),
numbers as (
    select session_id, position, columns('^(item|user)_.*_(1h|6h|24h|1w|hours)$|^context_')::float
    from sampled
),
published as (
    select session_id, position, feature, value
    from numbers unpivot include nulls (value for feature in (columns(* exclude (session_id, position))))
)
select
    session_id, position, feature,
    concat(
        feature, ' of impression ', position, ' in session ', session_id, ' is ',
        coalesce(format('{:g}', published.value), 'null'), ', but what lay strictly before it gives ',
        coalesce(format('{:g}', recounted.value), 'null')
    ) as reason
from published
full join recounted using (session_id, position, feature)
where published.value is distinct from recounted.value::float  -- as narrow as it was published
order by session_id, position, feature
