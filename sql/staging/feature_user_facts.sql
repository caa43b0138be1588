-- The facts of the range's users from a week before the range to its end; the quiet time, as in
-- feature_item_moments.sql, is one moment.
select
    shown, positive,
    epoch_us(if(ts >= $quiet_from and ts < $quiet_until, $quiet_from, ts)) as moment,
    hash(item_id) as item,
    hash(user_id) as "user"
from facts
where ts >= $read_from and ts < $end and hash(user_id) in (select "user" from in_range)
