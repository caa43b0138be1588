-- How often each impression's subject was shown and was positive in [t - w, t): what lay before t less what lay before
-- t - w. Every subject opens with a moment of nothing, so that something lies before each edge of a window.
with opened as (
    select subject, moment, shown, positive from moments
    union all
    select distinct subject, -9_000_000_000_000_000_000 as moment, 0 as shown, 0 as positive from asked
),
past as (
    -- One running sum over all subjects: what earlier ones add is the same at both edges, and goes.
    select
        subject, moment,
        (sum(shown) over so_far)::bigint as shown,
        (sum(positive) over so_far)::bigint as positive
    from opened
    window so_far as (order by subject, moment rows unbounded preceding)
),
edges as (
    select impression, subject, hours, us - hours * 3_600_000_000 as edge
    from asked, (select unnest([0, 1, 6, 24, 168]) as hours)
),
before as (
    select edges.impression, edges.hours, past.shown, past.positive
    from edges
    asof join past on past.subject = edges.subject and past.moment < edges.edge
)
select
    impression,
    max(shown) - max(shown) filter (where hours = 1) as impressions_1h,
    max(shown) - max(shown) filter (where hours = 6) as impressions_6h,
    max(shown) - max(shown) filter (where hours = 24) as impressions_24h,
    max(shown) - max(shown) filter (where hours = 168) as impressions_1w,
    max(positive) - max(positive) filter (where hours = 1) as positives_1h,
    max(positive) - max(positive) filter (where hours = 6) as positives_6h,
    max(positive) - max(positive) filter (where hours = 24) as positives_24h,
    max(positive) - max(positive) filter (where hours = 168) as positives_1w
from before
group by impression
