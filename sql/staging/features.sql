-- One row an impression of the range: GoalRec's four groups of features, from what lay strictly before it.
select
    shown.session_id, shown.position, shown.item_id, shown.impression_ts,
    shown.category as item_category, shown.brand as item_brand, shown.shop as item_shop,
    item.impressions_1h as item_impressions_1h, item.positives_1h as item_positives_1h,
    coalesce(item.positives_1h / nullif(item.impressions_1h, 0), 0) as item_ctr_1h,
    item.impressions_6h as item_impressions_6h, item.positives_6h as item_positives_6h,
    coalesce(item.positives_6h / nullif(item.impressions_6h, 0), 0) as item_ctr_6h,
    item.impressions_24h as item_impressions_24h, item.positives_24h as item_positives_24h,
    coalesce(item.positives_24h / nullif(item.impressions_24h, 0), 0) as item_ctr_24h,
    item.impressions_1w as item_impressions_1w, item.positives_1w as item_positives_1w,
    coalesce(item.positives_1w / nullif(item.impressions_1w, 0), 0) as item_ctr_1w,
    ages.age_hours as item_age_hours,
    "user".impressions_1h as user_impressions_1h, "user".positives_1h as user_positives_1h,
    coalesce(categories.categories_1h, 0) as user_categories_1h,
    "user".impressions_6h as user_impressions_6h, "user".positives_6h as user_positives_6h,
    coalesce(categories.categories_6h, 0) as user_categories_6h,
    "user".impressions_24h as user_impressions_24h, "user".positives_24h as user_positives_24h,
    coalesce(categories.categories_24h, 0) as user_categories_24h,
    "user".impressions_1w as user_impressions_1w, "user".positives_1w as user_positives_1w,
    coalesce(categories.categories_1w, 0) as user_categories_1w,
    user_item.impressions_1w as user_item_impressions_1w, user_item.positives_1w as user_item_positives_1w,
    user_category.positives_1w as user_category_positives_1w,
    user_brand.positives_1w as user_brand_positives_1w,
    user_shop.positives_1w as user_shop_positives_1w,
    hour(shown.impression_ts) as context_hour,
    isodow(shown.impression_ts) - 1 as context_weekday,
    shown.page as context_page, shown.position as context_position,
    if(
        shown.listed_ts <= shown.impression_ts,
        (shown.us - epoch_us(shown.listed_ts)) / 3_600_000_000,
        null
    ) as context_freshness_hours
from shown
join item_counts as item using (impression)
left join item_ages as ages using (impression)
join user_counts as "user" using (impression)
left join user_categories as categories using (impression)
join user_item_counts as user_item using (impression)
left join user_category_counts as user_category using (impression)
left join user_brand_counts as user_brand using (impression)
left join user_shop_counts as user_shop using (impression)
