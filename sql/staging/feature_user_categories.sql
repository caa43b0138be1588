-- Of how many categories each impression's user had a positive in [t - w, t). A positive keeps its category counted
-- from just after it until w later; where these spans of a category meet they are one, whose ends are two steps of a
-- level. The steps of every user and window add up to nothing.
with windows as (
    select unnest([1, 6, 24, 168]) as hours
),
positives as (
    select distinct "user", user_category, moment, hours, hours * 3_600_000_000 as length
    from user_positives, windows
    where user_category is not null
        and moment + hours * 3_600_000_000 >= epoch_us($start)  -- the others' spans end before the range
),
spaced as (
    select
        *,
        lag(moment) over times as previous,
        lead(moment) over times as next
    from positives
    window times as (partition by user_category, hours order by moment)
),
steps as (
    select "user", hours, moment, 1 as step
    from spaced
    where previous is null or previous + length < moment
    union all
    select "user", hours, moment + length as moment, -1 as step
    from spaced
    where next is null or moment + length < next
),
moments as (
    select
        "user", moment,
        coalesce(sum(step) filter (where hours = 1), 0)::int as step_1h,
        coalesce(sum(step) filter (where hours = 6), 0)::int as step_6h,
        coalesce(sum(step) filter (where hours = 24), 0)::int as step_24h,
        coalesce(sum(step) filter (where hours = 168), 0)::int as step_1w
    from steps
    group by "user", moment
),
levels as (
    select
        "user", moment,
        sum(step_1h) over so_far as categories_1h,
        sum(step_6h) over so_far as categories_6h,
        sum(step_24h) over so_far as categories_24h,
        sum(step_1w) over so_far as categories_1w
    from moments
    window so_far as (order by "user", moment rows unbounded preceding)
)
select shown.impression, categories_1h, categories_6h, categories_24h, categories_1w
from shown
asof join levels on levels."user" = shown."user" and levels.moment < shown.us
