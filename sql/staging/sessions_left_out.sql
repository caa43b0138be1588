-- What the sessions of a partition leave out: sessions that showed nothing, and feedback to what was not shown.
with events_of_partition as (
    select * from session_events where start_ts >= $start and start_ts < $end
)
select
    (
        select count(distinct session_id) from events_of_partition anti join sessions using (session_id)
    ) as empty,
    (
        select count(*)
        from events_of_partition
        anti join credits on credits.feedback_id = events_of_partition.event_id
        where is_feedback
    ) as uncredited
