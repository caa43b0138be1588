-- The points that one bin of the behaviour policy's reliability plot is the mean of: a candidate of a slot each, with the
-- chance that it had and whether it was shown. Bins are tenths of all points by their chance, the first is 0.
with points as (
    select
        session_id,
        step,
        slot,
        generate_subscripts(chances, 1) - 1 as candidate,
        unnest(chances) as predicted,
        candidate = shown as observed
    from ope_chances
),
possible as (
    select * from points where predicted is not null
),
edges as (
    select quantile_cont(predicted, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]) as edges
    from possible
),
binned as (
    -- A bin that no chance falls into has no number.
    select
        possible.*,
        dense_rank() over (order by len(list_filter(edges.edges, lambda edge: edge < predicted))) - 1 as bin
    from possible
    cross join edges
)
select bin, session_id, step, slot, candidate, predicted, observed
from binned
where bin = $bin
order by session_id, step, slot, candidate
