-- Slots that lie outside of a page of $rows by $cols, and slots that show more than one item.
select
    session_id, page,
    concat(
        'row ', "row", ', column ', col, ' of page ', page, ' in session ', session_id,
        if(count(*) > 1, concat(' shows ', count(*), ' items'), ' lies outside of the page')
    ) as reason
from impressions
group by session_id, page, "row", col
having count(*) > 1 or "row" < 0 or "row" >= $rows or col < 0 or col >= $cols
order by session_id, page, "row", col
