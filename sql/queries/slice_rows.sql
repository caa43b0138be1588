-- The rows whose mean is one number of the slices: a session, or a positive item of one, each. For example
-- agent=goalrec_off mode=paged dimension=user slice=new
select agent, mode, dimension, slice, metric, session_id, item_key, user_key, value
from slice_scores
where agent = $agent and mode = $mode and dimension = $dimension and slice = $slice
order by session_id, item_key
