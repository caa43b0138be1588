-- One row a moment of an item of the range, from a week before the range to its end. No window starts in the quiet time
-- after the week's last start and before the day's first: all of it is one moment, which keeps a week of history small.
select
    hash(item_id) as subject,
    epoch_us(if(ts >= $quiet_from and ts < $quiet_until, $quiet_from, ts)) as moment,
    sum(shown)::int as shown,
    sum(positive)::int as positive,
    epoch_us(min(ts) filter (where shown > 0)) as first_us
from facts
where ts >= $read_from and ts < $end and hash(item_id) in (select item from in_range)
group by all
