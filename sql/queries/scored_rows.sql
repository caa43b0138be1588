-- The rows that sessions_scored counts: every test session, and whether re-ranking can judge an order of it; for example
-- mode=paged.
select distinct session_id, user_key, candidates, positives, status
from rerank
where mode = $mode
order by session_id
