-- How much of the impressions and of the positives the most popular of the shown items take, and the Gini coefficient:
-- 0 where all items have the same, near 1 where one item has everything.
with taken as (
    select item, kind, n
    from item_totals
    unpivot (n for kind in (impressions, positives))
),
ranked as (
    select
        kind,
        n,
        row_number() over (partition by kind order by n desc, item) as place,
        count(*) over (partition by kind) as items,
        sum(n) over (partition by kind) as total
    from taken
),
figures as (
    select
        kind,
        sum(n) filter (where place <= ceil(0.01 * items)) / any_value(total)::double as top_1_percent_share,
        sum(n) filter (where place <= ceil(0.1 * items)) / any_value(total)::double as top_10_percent_share,
        2 * sum((items + 1 - place) * n) / (any_value(items) * any_value(total)::double)
        - (any_value(items) + 1) / any_value(items) as gini
    from ranked
    where total > 0
    group by kind
)
select 'popularity' as section, name, kind as bucket, value
from figures
unpivot (value for name in (top_1_percent_share, top_10_percent_share, gini))
order by kind, list_position(['top_1_percent_share', 'top_10_percent_share', 'gini'], name)
