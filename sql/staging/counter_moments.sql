-- One row a moment of an item that is asked for, since the log began.
select
    hash(item_id) as subject,
    epoch_us(ts) as moment,
    sum(shown)::int as shown,
    sum(positive)::int as positive,
    epoch_us(min(ts) filter (where shown > 0)) as first_us
from facts
where hash(item_id) in (select subject from asked)
group by subject, moment
