-- Components of the free features that were not scaled by the training window: over its rows, and over no others, their
-- mean is 0 and their deviation at most 1 (less where some rows lack the number).
with numbers as (
    select unnest(features) as value, generate_subscripts(features, 1) as component
    from entities
    where trained
),
scales as (
    select component, avg(value::double) as mean, sqrt(avg(value::double * value)) as deviation
    from numbers
    group by component
)
select
    component,
    concat(
        'component ', component, ' of the features has mean ', format('{:.3g}', mean), ' and deviation ',
        format('{:.3g}', deviation), ' over the training window, where 0 and at most 1 are due'
    ) as reason
from scales
where abs(mean) > 1e-3 or deviation > 1.001  -- what single precision rounds off is far less
order by component
