-- The items and moments of questions, numbered, and by hashes: what the counts of features read.
select row_number() over () as impression, item_id, ts, hash(item_id) as subject, epoch_us(ts) as us from questions
