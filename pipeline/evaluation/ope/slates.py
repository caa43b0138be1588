"""Estimators of whole pages: V(π) = E[Σ_k r_k] from n pages of μ with K slots, each with a reward of its own.

They differ in what a slot's reward may depend on, hence in the weight that it needs: on the whole page (SIPS), on the
slots above it (RIPS, cascade-DR), on nothing but itself (IIPS), or on a sum of unobserved parts (pseudo-inverse).
"""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import DataError
from pipeline.evaluation.ope.estimate import Estimator, Terms, doubly_robust, weighted
from pipeline.evaluation.ope.logged import Floats, Ints, LoggedSlates


@dataclass(frozen=True)
class _Slates(Estimator[LoggedSlates]):
    self_normalised: bool = False  # divide by the weights' sum, a slot at a time, instead of n

    def weigh(self, weight: Floats, reward: Floats, logged: LoggedSlates, nested: bool = False) -> Terms:
        return weighted(weight, reward, self.clip, self.self_normalised, logged.user_key, nested=nested)


@dataclass(frozen=True)
class SIPS(_Slates):
    """Whole-page IPS: V̂ = 1/n Σ_i (Π_k π(a_k|·) / μ(a_k|·))·Σ_k r_ik. Assumes nothing; hopeless but on short pages
    (the "standard" baseline of McInerney et al., KDD 2020)."""

    def terms(self, logged: LoggedSlates) -> Terms:
        weight = logged.ratio.cumprod(axis=1)  # [n, K]
        terms = self.weigh(weight[:, -1:], logged.reward.sum(axis=1, keepdims=True), logged)
        last = np.eye(weight.shape[1])[-1]  # the prefixes' weights show what overlap there is, the last one is used
        return replace(terms, weight=weight, share=last, nested=True)


@dataclass(frozen=True)
class IIPS(_Slates):
    """Independent IPS: V̂ = 1/n Σ_i Σ_k (π(a_k in k|x) / μ(a_k in k|x))·r_ik, with the marginals of each slot.

    Unbiased when a slot's reward depends on its own item only: the item-position model (Li et al., KDD 2018).
    """

    def terms(self, logged: LoggedSlates) -> Terms:
        return self.weigh(logged.marginal_ratio, logged.reward, logged)


@dataclass(frozen=True)
class RIPS(_Slates):
    """Reward-interaction IPS: V̂ = 1/n Σ_i Σ_k (Π_{j≤k} π(a_j|·) / μ(a_j|·))·r_ik.

    Unbiased when a slot's reward depends on its own item and those above: the cascade (McInerney et al., KDD 2020).
    """

    def terms(self, logged: LoggedSlates) -> Terms:
        return self.weigh(logged.ratio.cumprod(axis=1), logged.reward, logged, nested=True)


@dataclass(frozen=True)
class CascadeDR(_Slates):
    """Cascade doubly robust: V̂ = 1/n Σ_i Σ_k w_i,1:k·(r_ik − q_k(a_1..a_k)) + w_i,1:k−1·v_k(a_1..a_k−1).

    q_k is the reward expected from slot k on, v_k its mean over the target's choice for the slot. Unbiased under the
    cascade when the propensities or q are right (Kiyohara et al., WSDM 2022; DR of sessions with slots as steps).
    """

    def terms(self, logged: LoggedSlates) -> Terms:
        if logged.q_logged is None or logged.v_target is None:
            raise DataError("LoggedSlates: cascade-DR needs q_logged and v_target. Give both, or take RIPS.")
        weight, model = logged.ratio.cumprod(axis=1), (logged.q_logged, logged.v_target)
        return doubly_robust(weight, logged.reward, *model, self.clip, self.self_normalised, logged.user_key)


@dataclass(frozen=True)
class PseudoInverse(_Slates):
    """Pseudo-inverse: V̂ = 1/n Σ_i (q_πᵀ Γ_μ⁺ 1_A)·Σ_k r_ik, the weight being ``LoggedSlates.projection``.

    Unbiased when the page's reward is a sum of parts that belong to (item, slot), none of which need be observed, and
    the target shows nothing that the log never does (Swaminathan et al., NeurIPS 2017; "wPI" when self-normalised).
    Weights can be negative.
    """

    def terms(self, logged: LoggedSlates) -> Terms:
        if logged.projection is None:
            raise DataError("LoggedSlates: the pseudo-inverse needs projection; compute it with slates.projection.")
        return self.weigh(logged.projection[:, None], logged.reward.sum(axis=1, keepdims=True), logged)


def projection(slates: Ints, target_marginals: Floats, second_moment: Floats) -> Floats:
    """The pseudo-inverse weights q_πᵀ Γ⁺ 1_A [n] of the pages ``slates`` [n, K], numbers among R candidates.

    ``target_marginals`` [n, K, R] are P_π(candidate in slot); ``second_moment`` [K·R, K·R] is Γ = E_μ[1_A 1_Aᵀ], or
    [n, K·R, K·R] where it differs from page to page; (slot, candidate) is flattened slot by slot.
    """
    n, slots, candidates = target_marginals.shape
    size = slots * candidates
    if slates.shape != (n, slots) or second_moment.shape[-2:] != (size, size):
        raise DataError(f"projection: pages {slates.shape} and a second moment {second_moment.shape} do not fit the "
                        f"marginals {target_marginals.shape}: [n, K], [K·R, K·R] and [n, K, R] do.")  # fmt: skip
    # Γ is known only as well as its entries are, hence a cut-off above numpy's for singular values that are 0.
    inverse = np.linalg.pinv(second_moment, rcond=1e-10, hermitian=True)  # [.., K·R, K·R]
    direction = (target_marginals.reshape(n, 1, size) @ inverse).reshape(n, slots, candidates)
    weights: Floats = np.take_along_axis(direction, slates[:, :, None], axis=2).sum(axis=(1, 2))
    return weights


def uniform_second_moment(candidates: int, slots: int) -> Floats:
    """Γ [K·R, K·R] of pages of ``slots`` different items drawn uniformly from ``candidates``."""
    if not 1 <= slots <= candidates or candidates < 2:
        raise DataError(f"Pages of {slots} different items cannot be drawn from {candidates} candidates.")
    other_slot = np.kron(1 - np.eye(slots), 1 - np.eye(candidates)) / (candidates * (candidates - 1))
    moment: Floats = np.eye(slots * candidates) / candidates + other_slot
    return moment


def empirical_second_moment(slates: Ints, candidates: int) -> Floats:
    """Γ [K·R, K·R] as the mean over logged pages [n, K], where the logging policy saw no context."""
    n, slots = slates.shape
    shown = np.zeros((n, slots * candidates))
    np.put_along_axis(shown, slates + candidates * np.arange(slots), 1.0, axis=1)
    moment: Floats = shown.T @ shown / n
    return moment


_KINDS = {"sips": SIPS, "iips": IIPS, "rips": RIPS, "cascade_dr": CascadeDR, "pseudo_inverse": PseudoInverse}
SLATE_ESTIMATORS: dict[str, Estimator[LoggedSlates]] = {
    **{name: kind() for name, kind in _KINDS.items()},
    **{f"sn_{name}": kind(self_normalised=True) for name, kind in _KINDS.items()},
}
