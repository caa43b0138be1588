-- One row a line of yoochoose-clicks.dat; those of sessions that bought nothing are left out.
select
    * replace (
        case
            when reason is not null then reason
            when session_id not in (select session_id from buyers) then 'session without a purchase'
        end as reason
    )
from clicks
