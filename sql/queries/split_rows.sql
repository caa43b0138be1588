-- The rows that one split counts, for example split=test: the sessions that start in it; those that reach its end are
-- dropped, and a ranking can be judged in the usable ones.
select
    splits.split,
    sessions.session_id,
    sessions.user_key,
    sessions.start_ts,
    sessions.end_ts,
    sessions.end_ts >= splits.end_ts as dropped,
    sessions.end_ts < splits.end_ts and sessions.clicks between 1 and sessions.impressions - 1 as usable
from sessions
inner join splits on sessions.start_ts >= splits.start_ts and sessions.start_ts < splits.end_ts
where splits.split = $split
order by sessions.start_ts, sessions.session_id
