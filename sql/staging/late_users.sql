-- The users whose sessions of a partition may go on in the next: those who acted shortly before its end.
select distinct user_id from events where event_ts >= $end - $gap and event_ts < $end
