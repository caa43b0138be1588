"""Ranking metrics of leg 1, with the definitions of trec_eval.

A session is one query, its logged impressions are the documents. Binary relevance is "clicked or purchased":

    MAP          mean over the relevant items of the precision at their ranks, over the full list
    MRR          1 / rank of the first relevant item
    NDCG@k       Σ_{r≤k} gain_r / log2(r + 1), over the same sum for the best order of the same session
    P@20         relevant items among the first 20, divided by 20 even where the list is shorter
    R@20, F1@20  found / relevant; the harmonic mean of P@20 and R@20 in the session, 0 where both are 0
    Hit@k        1 if any of the first k is relevant

``ndcg_k`` has binary gains, ``ndcg_reward_k`` linear gains (Järvelin and Kekäläinen, TOIS 2002), not 2^gain - 1.
Negative rewards count as 0, as in trec_eval.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.schemas import HIT_CUTOFFS, NDCG_CUTOFFS

Floats = NDArray[np.float64]
Rewards = NDArray[np.floating]
Flags = NDArray[np.bool_]
Lengths = NDArray[np.integer]
CELLS = 1 << 18  # of a working array: small enough for the cache, and it bounds the memory


def rank_metrics(rewards: Rewards, relevant: Flags, lengths: Lengths) -> dict[str, Floats]:
    """Every metric of ``schemas.RERANK_METRICS`` for each of S sessions.

    ``rewards`` [S, L] and ``relevant`` [S, L] are in ranked order, best first; of row s only the first ``lengths[s]``
    entries are real. A session without a relevant item scores 0 throughout, as in trec_eval; whether it counts is
    the caller's decision. Raises DataError when the shapes do not fit.
    """
    if (
        rewards.ndim != 2
        or not rewards.shape[1]
        or rewards.shape != relevant.shape
        or lengths.shape != rewards.shape[:1]
    ):
        raise DataError(
            f"rank_metrics needs rewards and relevant as [S, L >= 1] and lengths as [S]; it got {rewards.shape}, "
            f"{relevant.shape} and {lengths.shape}. Pad the rankings to one width."
        )
    step = max(1, CELLS // rewards.shape[1])
    parts = [
        _metrics(rewards[start : start + step], relevant[start : start + step], lengths[start : start + step])
        for start in range(0, max(1, len(rewards)), step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _metrics(rewards: Rewards, relevant: Flags, lengths: Lengths) -> dict[str, Floats]:
    width = rewards.shape[1]
    ranks = np.arange(1, width + 1)
    real = ranks <= lengths[:, None]  # [S, L]
    relevant = relevant & real
    hits = relevant.astype(np.float64)  # [S, L]
    gains = np.where(real, np.maximum(rewards, 0), 0).astype(np.float64)  # [S, L]
    found = relevant.cumsum(axis=1, dtype=np.int32)  # [S, L]; adding integers takes a third of the time
    positives = found[:, -1]  # [S]
    at_20 = found[:, min(20, width) - 1]
    precision, recall = at_20 / 20, _ratio(at_20, positives)
    discounts = (ranks[:, None] <= np.array(NDCG_CUTOFFS)) / np.log2(ranks + 1)[:, None]  # [L, cut-offs]
    dcg, reward_dcg = hits @ discounts, gains @ discounts  # [S, cut-offs]
    # The best order has its positives on top, so its binary DCG is a prefix sum of the discounts.
    prefix = np.vstack([np.zeros(len(NDCG_CUTOFFS)), discounts.cumsum(axis=0)])
    ideal = prefix[positives]
    reward_ideal = np.sort(gains, axis=1) @ discounts[::-1].copy()  # both from the last rank to the first
    return {
        "map": _ratio(np.einsum("sl,sl,l->s", found, hits, 1 / ranks), positives),
        "mrr": (positives > 0) / (1.0 + relevant.argmax(axis=1)),
        **{f"ndcg_{k}": _ratio(dcg[:, i], ideal[:, i]) for i, k in enumerate(NDCG_CUTOFFS)},
        **{f"ndcg_reward_{k}": _ratio(reward_dcg[:, i], reward_ideal[:, i]) for i, k in enumerate(NDCG_CUTOFFS)},
        "precision_20": precision,
        "recall_20": recall,
        "f1_20": _ratio(2 * precision * recall, precision + recall),
        **{f"hit_{k}": (found[:, min(k, width) - 1] > 0).astype(np.float64) for k in HIT_CUTOFFS},
    }


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    """The quotient, 0 where the denominator is 0."""
    out = np.zeros(len(numerator))
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out
