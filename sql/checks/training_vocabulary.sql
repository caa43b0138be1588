-- Items that know another window than the training one: the canary. Their index, their counts, and the code of their
-- category, which a training item must share.
with trained as (
    select item_id, count(*) as impressions, count(*) filter (where feedback <> 'skip') as positives
    from impressions
    join session_splits using (session_id)
    where split = 'train'
    group by item_id
),
trained_categories as (
    select distinct category from items where item_id in (select item_id from trained)
),
told as (
    select
        items.item_id,
        items.item > 0 as has_index,
        trained.item_id is not null as is_trained,
        (train_impressions, train_positives) as published,
        (coalesce(trained.impressions, 0), coalesce(trained.positives, 0)) as counted,
        category_code > 0 and (category is null or category not in (from trained_categories)) as has_foreign_code
    from items
    left join trained using (item_id)
)
select
    item_id,
    concat(
        'item ', item_id,
        case
            when has_index and not is_trained then ' has an index, but the training window does not show it'
            when is_trained and not has_index then ' is shown in the training window, but has none'
            when published is distinct from counted then concat(
                ' counts ', published[1], ' impressions and ', published[2], ' positives, but the training window has ',
                counted[1], ' and ', counted[2]
            )
            else ' has the code of a category that no item of the training window has'
        end
    ) as reason
from told
where has_index <> is_trained or published is distinct from counted or has_foreign_code
order by item_id
