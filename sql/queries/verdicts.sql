-- What may be said of the run, by rule: a row a question and subject (an agent, a world, or empty for the run as a
-- whole), in the order of the report. "holds" is null where there is no verdict; "reason" has the numbers.
select
    verdicts.place,
    verdicts.verdict,
    verdicts.subject,
    verdicts.holds,
    verdicts.headline,
    verdicts.reason
from verdicts
order by verdicts.place
