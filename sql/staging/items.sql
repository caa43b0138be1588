-- Every item that was shown or that the log describes. Indices, category codes and counts know the training window
-- alone, counters what came before its end.
with catalogue as (
    select item_id, title, nullif(category, '') as category, brand, shop, price, listed_ts, features
    from described_items
    qualify row_number() over (
        partition by item_id order by title, category, brand, shop, price, listed_ts, features
    ) = 1
),
trained as (
    select
        item_id,
        count(*) as impressions,
        count(*) filter (where feedback <> 'skip') as positives,
        row_number() over (order by item_id) as item
    from impressions
    join session_splits using (session_id)
    where split = 'train'
    group by item_id
),
mentioned as (
    select item_id, nullif(min(category), '') as category, min(brand) as brand, min(shop) as shop
    from mentions
    left join trained using (item_id)
    where trained.item is null or first_ts < (select end_ts from splits where split = 'train')
    group by item_id
),
described as (
    select
        item_id,
        catalogue.title,
        coalesce(catalogue.category, mentioned.category) as category,
        coalesce(catalogue.brand, mentioned.brand) as brand,
        coalesce(catalogue.shop, mentioned.shop) as shop,
        catalogue.price,
        catalogue.listed_ts,
        catalogue.features
    from catalogue
    full join mentioned using (item_id)
),
categories as (
    select category, row_number() over (order by category) as code
    from trained
    join described using (item_id)
    where category is not null
    group by category
),
known as (
    select item_id from impressions
    union
    select item_id from described
)
select
    item_id,
    key64(item_id) as item_key,
    coalesce(trained.item, 0) as item,
    title, category,
    coalesce(categories.code, 0) as category_code,
    brand, shop, price, listed_ts, features,
    coalesce(trained.impressions, 0) as train_impressions,
    coalesce(trained.positives, 0) as train_positives,
    counters
from known
left join described using (item_id)
left join trained using (item_id)
left join categories using (category)
left join item_counters using (item_id)
order by item_id
