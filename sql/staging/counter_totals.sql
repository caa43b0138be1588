-- How often each item that is asked for was shown and was positive before the moment, since the log began.
with past as (
    select
        subject, moment,
        sum(shown) over so_far as shown,
        sum(positive) over so_far as positive
    from moments
    window so_far as (partition by subject order by moment)
)
select
    asked.impression, asked.item_id, asked.ts,
    coalesce(past.shown, 0) as impressions,
    coalesce(past.positive, 0) as positives
from asked
asof left join past on past.subject = asked.subject and past.moment < asked.us
