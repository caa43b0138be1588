"""Estimators of single decisions: V(π) = E[Σ_a π(a|x)·r(x, a)] from a log of μ, with w = π(a|x) / μ(a|x)."""

from dataclasses import dataclass

from pipeline.errors import DataError
from pipeline.evaluation.ope.estimate import Estimator, Terms, doubly_robust, weighted
from pipeline.evaluation.ope.logged import LoggedSteps


@dataclass(frozen=True)
class IPS(Estimator[LoggedSteps]):
    """Inverse propensity scoring: V̂ = 1/n Σ_i w_i·r_i. Unbiased (Horvitz and Thompson, JASA 1952)."""

    def terms(self, logged: LoggedSteps) -> Terms:
        return weighted(logged.ratio[:, None], logged.reward[:, None], self.clip, False, logged.user_key)


@dataclass(frozen=True)
class SNIPS(Estimator[LoggedSteps]):
    """Self-normalised IPS: V̂ = Σ_i w_i·r_i / Σ_i w_i. Bias of order 1/n, less variance, and never outside the range
    of the rewards (Swaminathan and Joachims, NeurIPS 2015)."""

    def terms(self, logged: LoggedSteps) -> Terms:
        return weighted(logged.ratio[:, None], logged.reward[:, None], self.clip, True, logged.user_key)


@dataclass(frozen=True)
class DR(Estimator[LoggedSteps]):
    """Doubly robust: V̂ = 1/n Σ_i v(x_i) + w_i·(r_i − q(x_i, a_i)), with v(x) = Σ_a π(a|x)·q(x, a).

    Unbiased when the propensities or q are right (Dudík, Langford and Li, ICML 2011). ``self_normalised`` divides
    the correction by Σ_i w_i instead of n (Robins, Sued, Lei-Gomez and Rotnitzky, Statistical Science 2007).
    """

    self_normalised: bool = False

    def terms(self, logged: LoggedSteps) -> Terms:
        if logged.q_logged is None or logged.v_target is None:
            raise DataError("LoggedSteps: DR needs q_logged and v_target. Give both, or take IPS or SNIPS.")
        model = logged.q_logged[:, None], logged.v_target[:, None]
        weight, reward = logged.ratio[:, None], logged.reward[:, None]
        return doubly_robust(weight, reward, *model, self.clip, self.self_normalised, logged.user_key)


STEP_ESTIMATORS = {"ips": IPS(), "snips": SNIPS(), "dr": DR(), "sn_dr": DR(self_normalised=True)}
