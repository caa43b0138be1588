"""The Open Bandit Pipeline's estimators on our logs: what ours are held against, in tests and in ``benchmarks.ope``.

Saito, Aihara, Matsutani and Narita, NeurIPS 2021 (the package ``sb-obp``). It has no self-normalised cascade-DR, no
pseudo-inverse and nothing for sessions of several steps.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from obp.ope import estimators, estimators_slate

from pipeline.evaluation.ope.logged import Floats, Ints, LoggedSlates, LoggedSteps

STEPS = {
    "ips": estimators.InverseProbabilityWeighting,
    "snips": estimators.SelfNormalizedInverseProbabilityWeighting,
    "dr": estimators.DoublyRobust,
    "sn_dr": estimators.SelfNormalizedDoublyRobust,
}
SLATES = {
    "sips": estimators_slate.SlateStandardIPS,
    "sn_sips": estimators_slate.SelfNormalizedSlateStandardIPS,
    "iips": estimators_slate.SlateIndependentIPS,
    "sn_iips": estimators_slate.SelfNormalizedSlateIndependentIPS,
    "rips": estimators_slate.SlateRewardInteractionIPS,
    "sn_rips": estimators_slate.SelfNormalizedSlateRewardInteractionIPS,
}


def step_value(name: str, log: dict[str, Any]) -> float:
    """What the package makes of a log of ``step_columns``."""
    return float(STEPS[name]().estimate_policy_value(**log))


def slate_value(name: str, log: dict[str, Any], slots: int, candidates: int) -> float:
    """What the package makes of a log of ``slate_columns``."""
    if name == "cascade_dr":
        judge = estimators_slate.SlateCascadeDoublyRobust(len_list=slots, n_unique_action=candidates)
    else:
        judge = SLATES[name](len_list=slots)
    return float(judge.estimate_policy_value(**log))


def step_columns(
    logged: LoggedSteps, action: Ints, target: Floats, q: Floats, position: Ints | None = None
) -> dict[str, Any]:
    """Beside the log, the package wants ``target`` and ``q`` of each action in each position, [n, A, P]."""
    return {
        "reward": logged.reward,
        "action": action,
        "pscore": logged.behaviour,
        "action_dist": target,
        "estimated_rewards_by_reg_model": q,
        "position": position,
    }


def slate_columns(logged: LoggedSlates, slates: Ints, target: Floats, q: Floats) -> dict[str, Any]:
    """A row a slot; ``target`` and ``q`` [n, K, R] are those of each candidate, given the slots above it."""
    n, slots = logged.reward.shape
    joint = {"": logged.behaviour.cumprod(axis=1), "evaluation_policy_": logged.target.cumprod(axis=1)}  # [n, K] each
    pages: dict[str, NDArray[Any]] = {
        "slate_id": np.repeat(np.arange(n), slots),
        "position": np.tile(np.arange(slots), n),
        "action": slates,
        "reward": logged.reward,
        "q_hat": q,
        "evaluation_policy_action_dist": target,
    }
    for policy, chances in joint.items():
        pages[f"{policy}pscore"] = np.repeat(chances[:, -1], slots)
        pages[f"{policy}pscore_cascade"] = chances
    if logged.behaviour_marginal is not None and logged.target_marginal is not None:
        pages["pscore_item_position"] = logged.behaviour_marginal
        pages["evaluation_policy_pscore_item_position"] = logged.target_marginal
    return {name: column.ravel() for name, column in pages.items()}
