-- One row an item and a moment of the table asked: what the log had counted of it strictly before. Its showings and its
-- positives since the log began; then what features tell of an item's past, as an impression of that moment would have
-- it.
with questions as (
    select row_number() over () as question, item_id, ts, hash(item_id) as item, epoch_us(ts) as us from asked
),
moments as (
    select hash(item_id) as item, epoch_us(ts) as moment, sum(shown) as shown, sum(positive) as positive
    from facts
    where hash(item_id) in (select item from questions)
    group by item, moment
),
opened as (  -- every item opens with a moment of nothing, so that something lies before each edge of a window
    from moments
    union all
    select distinct item, -9_000_000_000_000_000_000 as moment, 0 as shown, 0 as positive from questions
),
past as (  -- one running sum over all items: what earlier ones add is the same at both edges, and goes
    select
        item, moment,
        (sum(shown) over so_far)::bigint as shown,
        (sum(positive) over so_far)::bigint as positive
    from opened
    window so_far as (order by item, moment rows unbounded preceding)
),
edges as (
    select question, item, hours, us - hours * 3_600_000_000 as edge
    from questions, (select unnest([0, 1, 6, 24, 168, 100_000_000]) as hours)
),
before as (
    select edges.question, edges.hours, past.shown, past.positive
    from edges
    asof join past on past.item = edges.item and past.moment < edges.edge
),
counts as (
    select
        question,
        max(shown) - min(shown) as shown,
        max(shown) - max(shown) filter (where hours = 1) as shown_1h,
        max(shown) - max(shown) filter (where hours = 6) as shown_6h,
        max(shown) - max(shown) filter (where hours = 24) as shown_24h,
        max(shown) - max(shown) filter (where hours = 168) as shown_1w,
        max(positive) - min(positive) as positive,
        max(positive) - max(positive) filter (where hours = 1) as positive_1h,
        max(positive) - max(positive) filter (where hours = 6) as positive_6h,
        max(positive) - max(positive) filter (where hours = 24) as positive_24h,
        max(positive) - max(positive) filter (where hours = 168) as positive_1w
    from before
    group by question
),
ages as (  -- hours since the first showing within a week
    select question, (us - showings.moment) / 3_600_000_000 as hours
    from questions
    asof join (select item, moment from moments where shown > 0) as showings
        on showings.item = questions.item and showings.moment >= us - 604_800_000_000
    where showings.moment < us
)
select
    item_id, ts,
    [
        shown, positive,
        shown_1h, positive_1h, coalesce(positive_1h / nullif(shown_1h, 0), 0),
        shown_6h, positive_6h, coalesce(positive_6h / nullif(shown_6h, 0), 0),
        shown_24h, positive_24h, coalesce(positive_24h / nullif(shown_24h, 0), 0),
        shown_1w, positive_1w, coalesce(positive_1w / nullif(shown_1w, 0), 0),
        ages.hours
    ]::float[] as counters
from questions
join counts using (question)
left join ages using (question)
