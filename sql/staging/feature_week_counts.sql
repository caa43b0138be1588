-- How often each impression's subject was shown and was positive in the week before it. What happens at a moment counts
-- from just after it until a week later, so that the steps of every subject add up to nothing.
with steps as (
    select subject, moment, shown, positive from moments
    union all
    select subject, moment + 604_800_000_000 as moment, -shown as shown, -positive as positive from moments
),
merged as (
    select subject, moment, sum(shown)::int as shown, sum(positive)::int as positive from steps group by subject, moment
),
levels as (
    select
        subject, moment,
        (sum(shown) over so_far)::int as shown,
        (sum(positive) over so_far)::int as positive
    from merged
    window so_far as (order by subject, moment rows unbounded preceding)
)
select
    asked.impression,
    coalesce(levels.shown, 0) as impressions_1w,
    coalesce(levels.positive, 0) as positives_1w
from asked
asof left join levels on levels.subject = asked.subject and levels.moment < asked.us
