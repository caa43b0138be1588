-- What is claimed of the off-policy estimators, each claim with what was measured of it in the storefront and what it
-- allows; those that do not hold first. A bias is in standard deviations of the estimate from one log, or, where a
-- model or propensities are wrong, a share of the true value.
select
    claim,
    setting,
    estimator,
    target,
    n,
    logs,
    truth,
    value,
    least,
    most,
    holds
from ope_proof
order by holds, claim, setting, estimator, target
