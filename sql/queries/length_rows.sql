-- The rows behind the spread and the histogram of one measure, for example measure=impressions_of_a_session; with
-- impressions_of_an_item or positives_of_an_item those behind popularity, and behind the shares of cold items (length is
-- more than earlier; cold where earlier is 0), with sessions_of_a_user those behind the shares of cold users.
select measure, session_id, user_key, item_id, length, earlier
from lengths
where measure = $measure
order by length desc, session_id, user_key, item_id
