-- The impressions of the range, numbered. Hashes of 64 bits tell items and users apart: they sort and join several
-- times as fast as the log's own ids.
select
    row_number() over () as impression,
    session_id, user_id, item_id, page, position, impression_ts,
    epoch_us(impression_ts) as us,
    hash(item_id) as item,
    hash(user_id) as "user"
from impressions
where impression_ts >= $start and impression_ts < $end
