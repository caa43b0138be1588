-- The estimates that the claims of one kind about an off-policy estimator rest on, one from each simulated log (and
-- ranker, of selection): ope_proof_recomputed makes the claims' numbers of them. For example
-- claim=coverage estimator=rips
select claim, setting, estimator, target, ranker, n, log, truth, value, ci_low, ci_high, supported
from ope_proof_logs
where claim = $claim and estimator = $estimator
order by setting, target, n, log, ranker
