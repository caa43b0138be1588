-- Hours since the first showing of each impression's item in the week before it; no row where there was none.
with showings as (
    select subject, moment, first_us from moments where shown > 0
)
select asked.impression, (asked.us - showings.first_us) / 3_600_000_000 as age_hours
from asked
asof join showings on showings.subject = asked.subject and showings.moment >= asked.us - 604_800_000_000
where showings.first_us < asked.us
