-- Counters of items with the moment before which they were counted: the end of the training window.
select concat('item ', item_id) as place, item_id, end_ts as ts, counters
from items, splits
where item > 0 and split = 'train'
