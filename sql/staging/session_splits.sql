-- The sessions that count, each with its split: those that end inside the split they start in.
select sessions.session_id, sessions.user_id, splits.split
from sessions
join splits
    on sessions.start_ts >= splits.start_ts
    and sessions.start_ts < splits.end_ts
    and sessions.end_ts < splits.end_ts
