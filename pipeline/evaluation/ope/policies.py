"""Propensities of policies: rankers smoothed into distributions over pages, and a model of who made a log.

A page is drawn slot by slot without replacement with chances ∝ exp(logit): Plackett–Luce (Plackett, JRSS C 1975).
Shapes: n pages, R candidates, K slots, F features. ``logits`` [n, R] are -inf where there is no candidate; ``slates``
[n, K] are numbers among the candidates from the first slot on, -1 in an empty slot, whose propensity is 1.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from models.simulators.metrics import reliability
from pipeline.errors import DataError, NotFittedError
from pipeline.evaluation.ope.logged import Bools, Floats, Ints

CELLS = 1 << 18  # of a block of the quadrature: larger ones leave the cache
STEP = 0.4  # of the quadrature in log-time: its error falls like exp(-const/STEP)
SLOWEST = -700.0  # log-rate, near the least number above 0: what is even less likely counts as equally so
EARLIEST = -22.0  # log-time before which less than 1e-9 of a distribution's mass arrives


def smooth(scores: NDArray[np.floating], mask: Bools, temperature: float) -> Floats:
    """A deterministic ranker's scores [n, R] as logits: standardised over the page's candidates, over ``temperature``.

    At 1, a candidate one standard deviation better is e times as likely to come first; towards 0 the ranker itself.
    Standardising makes one temperature mean the same for agents whose scores have different units.
    """
    if not temperature > 0:
        raise DataError(f"A ranker is smoothed at a temperature above 0, not {temperature}. Its best page alone has no "
                        "overlap with a log.")  # fmt: skip
    known = np.where(mask, scores, np.nan).astype(np.float64)
    centre = np.nanmean(known, axis=1, keepdims=True)
    spread = np.nanstd(known, axis=1, keepdims=True)
    standard = (known - centre) / np.where(spread > 0, spread, 1)
    return np.where(mask, standard / temperature, -np.inf)


def sample_slates(logits: Floats, slots: int, rng: np.random.Generator) -> Ints:
    """Pages [n, slots] drawn from Plackett–Luce: the largest logits + Gumbel noise (Yellott, J. Math. Psych. 1977)."""
    noisy = logits + rng.gumbel(size=logits.shape)
    order = np.argsort(-noisy, axis=1, kind="stable")[:, :slots]
    return np.where(np.isneginf(np.take_along_axis(noisy, order, axis=1)), -1, order)


def conditional_propensities(logits: Floats, slates: Ints) -> Floats:
    """P(a_k | slots above) [n, K] of the items of ``slates``."""
    chosen = _chosen(logits, slates)
    left = np.where(np.isneginf(chosen), 0.0, _left(logits, slates))  # what the policy never shows has chance 0
    return np.where(slates >= 0, np.exp(chosen - left), 1.0)


def slot_distributions(logits: Floats, slates: Ints) -> Floats:
    """P(candidate | slots above) of each slot, [n, K, R], given the items that ``slates`` shows above it."""
    open_ = ~np.isneginf(logits)[:, None, :] & ~_placed_before(slates, logits.shape[1])
    return np.exp(_log_chances(np.broadcast_to(logits[:, None, :], open_.shape), open_))


def marginal_propensities(logits: Floats, slates: Ints) -> Floats:
    """P(item a_k in slot k) [n, K], whatever the other slots show: exact for any K.

    Plackett–Luce is a race of independent exponential clocks with rates θ = exp(logit). Item a comes in slot k when
    exactly k others (k from 0) ring before it: ∫ θ_a·exp(−θ_a·t)·P(k others before t) dt, a Poisson-binomial count.
    The integral is a trapezoid sum in log t, whose error falls exponentially with the step; no page is enumerated and
    nothing is sampled.
    """
    log_rate = np.where(np.isneginf(logits), -np.inf, np.maximum(log_softmax(logits, axis=1), SLOWEST))
    lowest = np.where(np.isneginf(log_rate), 0.0, log_rate).min()
    nodes = np.arange(EARLIEST, 4.0 - lowest, STEP)  # [Q] log t
    block = max(1, CELLS // (len(nodes) * slates.shape[1]))
    parts = [_race(log_rate[i : i + block], slates[i : i + block], nodes) for i in range(0, len(slates), block)]
    return np.concatenate(parts) if parts else np.empty(slates.shape)


def _race(log_rate: Floats, slates: Ints, nodes: Floats) -> Floats:
    late = np.exp(-np.exp(log_rate[:, :, None] + nodes))  # [n, R, Q] P(the clock has not rung at t)
    n, slots = slates.shape
    rows = np.arange(n)
    counts = np.zeros((n, slots, len(nodes)))  # [n, K, Q] P(so many have rung), of the items not on the page
    counts[:, 0] = 1
    on_page = (slates[:, :, None] == np.arange(log_rate.shape[1])).any(axis=1)  # [n, R]
    waiting = np.where(on_page[:, :, None], 1.0, late)  # an item that cannot ring changes nothing
    for item in range(log_rate.shape[1]):
        _add_clock(counts, waiting[:, item])
    shown = np.where((slates >= 0)[:, :, None], late[rows[:, None], slates], 1.0)  # [n, K, Q]
    marginals = np.ones(slates.shape)
    for slot in range(slots):
        others = counts[:, : slot + 1].copy()
        for item in range(slots):
            if item != slot:
                _add_clock(others, shown[:, item])
        rate = np.exp(log_rate[rows, slates[:, slot]][:, None] + nodes)  # [n, Q] θ·t, as dt = t·d(log t)
        marginals[:, slot] = STEP * (rate * shown[:, slot] * others[:, slot]).sum(axis=1)
    return np.where(slates >= 0, marginals, 1.0)


def _add_clock(counts: Floats, late: Floats) -> None:
    """One more clock, in place: P(m rung) ← late·P(m rung) + (1 − late)·P(m − 1 rung)."""
    rung = counts[:, :-1] * (1 - late)[:, None]
    counts *= late[:, None]
    counts[:, 1:] += rung


def _chosen(logits: Floats, slates: Ints) -> Floats:
    """The logits of the shown items, [n, K]; 0 in empty slots."""
    return np.where(slates >= 0, np.take_along_axis(logits, np.maximum(slates, 0), axis=1), 0.0)


def _left(logits: Floats, slates: Ints) -> Floats:
    """The log of the mass not yet placed before each slot, [n, K], summed from the last slot up: nothing cancels."""
    chosen = np.where(slates >= 0, _chosen(logits, slates), -np.inf)
    placed = _placed_before(np.hstack([slates, slates[:, :1]]), logits.shape[1])[:, -1]  # [n, R]
    rest = np.logaddexp.reduce(np.where(placed, -np.inf, logits), axis=1)  # [n]
    upwards = np.hstack([rest[:, None], chosen[:, ::-1]])
    left: Floats = np.logaddexp.accumulate(upwards, axis=1)[:, :0:-1]
    return left


def _placed_before(slates: Ints, candidates: int) -> Bools:
    """Whether a candidate stands above each slot, [n, K, R]."""
    here = (slates[:, :, None] == np.arange(candidates)).astype(np.int8)
    placed: Bools = (here.cumsum(axis=1, dtype=np.int8) - here) > 0
    return placed


def _log_chances(utilities: Floats, open_: Bools) -> Floats:
    """log softmax [n, K, R] over the ``open_`` candidates of each slot, -inf for the others."""
    # A finite stand-in, so that a slot with no candidate at all gives no NaN.
    return np.where(open_, log_softmax(np.where(open_, utilities, -1e30), axis=2), -np.inf)


class ConditionalLogit:
    """Who made a log that has no propensities: each slot's item is chosen with chances ∝ exp(x·(θ + z·η)).

    x are features of page and candidate (popularity in the fit window, similarity to the user), z runs from -1 in the
    first slot to 1 in the last: what drives the choice may change down the page. The sequential choice without
    replacement is the exploded logit (Beggs, Cardell and Hausman, J. Econometrics 1981), fitted by maximum likelihood
    with an L2 penalty on standardised features. Fit it before the cut-off, judge it by ``calibration`` after it.

    With ``marginal`` every slot chooses among all candidates, as if the others were empty: P(item in slot), the
    propensities of IIPS. They serve longer pages than conditional ones, whose errors multiply down the page.
    """

    def __init__(self, l2: float = 1.0, marginal: bool = False) -> None:
        self.l2, self.marginal = l2, marginal
        self.coefficients: Floats | None = None  # [2F] θ and η, of standardised features

    def fit(self, features: NDArray[np.floating], slates: Ints, mask: Bools) -> Self:
        """``features`` [n, R, F] of the candidates of n pages, ``mask`` [n, R] False where there is none."""
        self._check(features, slates, mask)
        known = features[mask]
        spread = known.std(axis=0)
        self.centre, self.spread = known.mean(axis=0), np.where(spread > 0, spread, 1)
        inputs, open_, chosen = self._choices(features, slates, mask)
        found = minimize(
            self._loss, np.zeros(2 * features.shape[2]), (inputs, open_, chosen), method="L-BFGS-B", jac=True
        )
        self.coefficients = np.asarray(found.x)
        return self

    def propensities(self, features: NDArray[np.floating], slates: Ints, mask: Bools) -> Floats:
        """P(a_k | slots above), or P(a_k in slot k) where ``marginal``, [n, K]; 1 in empty slots."""
        chances = self.distributions(features, slates, mask)
        shown = np.take_along_axis(chances, np.maximum(slates, 0)[:, :, None], axis=2)[:, :, 0]
        return np.where(slates >= 0, shown, 1.0)

    def distributions(self, features: NDArray[np.floating], slates: Ints, mask: Bools) -> Floats:
        """The same of every candidate, [n, K, R]."""
        if self.coefficients is None:
            raise NotFittedError("ConditionalLogit: call fit before asking for propensities.")
        self._check(features, slates, mask)
        inputs, open_, _ = self._choices(features, slates, mask)
        return np.exp(_log_chances(_utilities(self.coefficients, inputs, open_.shape[1]), open_))

    def calibration(
        self, features: NDArray[np.floating], slates: Ints, mask: Bools, bins: int = 10
    ) -> list[dict[str, Any]]:
        """The points of a reliability plot over all candidates of all slots: bin, predicted, observed, count."""
        return calibration(self.distributions(features, slates, mask), slates, mask, self.marginal, bins)

    def _choices(self, features: NDArray[np.floating], slates: Ints, mask: Bools) -> tuple[Floats, Bools, Bools]:
        """Standardised features [n, R, F]; which candidates each slot could take, and which it took [n, K, R]."""
        inputs = np.where(mask[:, :, None], (features - self.centre) / self.spread, 0.0)
        chosen = slates[:, :, None] == np.arange(mask.shape[1])
        closed = np.zeros_like(chosen) if self.marginal else _placed_before(slates, mask.shape[1])
        return inputs, mask[:, None, :] & ~closed, chosen

    def _loss(self, coefficients: Floats, inputs: Floats, open_: Bools, chosen: Bools) -> tuple[float, Floats]:
        """Minus the penalised log-likelihood, and its gradient."""
        log_chances = _log_chances(_utilities(coefficients, inputs, open_.shape[1]), open_)
        real = chosen.any(axis=2, keepdims=True)  # [n, K, 1] slots that are not empty
        excess = np.where(real, np.exp(log_chances) - chosen, 0.0)  # [n, K, R]
        depth = depths(chosen.shape[1])
        gradient = np.concatenate([
            np.einsum("nr,nrf->f", excess.sum(axis=1), inputs),
            np.einsum("nr,nrf->f", np.einsum("nkr,k->nr", excess, depth), inputs),
        ])  # fmt: skip
        loss = -float(log_chances[chosen].sum()) + self.l2 / 2 * float(coefficients @ coefficients)
        return loss, gradient + self.l2 * coefficients

    def _check(self, features: NDArray[np.floating], slates: Ints, mask: Bools) -> None:
        if features.ndim != 3 or mask.shape != features.shape[:2] or slates.shape[:1] != mask.shape[:1]:
            raise DataError(f"ConditionalLogit: features {features.shape}, pages {slates.shape} and a mask "
                            f"{mask.shape} do not fit: [n, R, F], [n, K] and [n, R] do.")  # fmt: skip
        shown = np.take_along_axis(mask, np.maximum(slates, 0), axis=1) | (slates < 0)
        if not shown.all():
            row = int(np.argwhere(~shown)[0, 0])
            raise DataError(f"ConditionalLogit: page {row} shows an item that is not among its candidates. Add what "
                            "was shown to the candidates.")  # fmt: skip


def calibration(
    chances: Floats, slates: Ints, mask: Bools, marginal: bool = False, bins: int = 10
) -> list[dict[str, Any]]:
    """How the chances [n, K, R] of all candidates of all slots fit what was shown: bin, predicted, observed, count."""
    chosen = slates[:, :, None] == np.arange(mask.shape[1])
    asked = open_candidates(slates, mask, marginal)
    points = zip(*(column.tolist() for column in reliability(chosen[asked], chances[asked], bins)), strict=True)
    return [dict(zip(("bin", "predicted", "observed", "count"), (i, *p), strict=True)) for i, p in enumerate(points)]


def open_candidates(slates: Ints, mask: Bools, marginal: bool = False) -> Bools:
    """Which candidates a filled slot could take, [n, K, R]: those not shown above it; of ``marginal`` ones all."""
    closed = np.zeros((*slates.shape, mask.shape[1]), bool) if marginal else _placed_before(slates, mask.shape[1])
    found: Bools = mask[:, None, :] & ~closed & (slates >= 0)[:, :, None]
    return found


def depths(slots: int) -> Floats:
    return np.linspace(-1, 1, slots) if slots > 1 else np.zeros(1)


def _utilities(coefficients: Floats, inputs: Floats, slots: int) -> Floats:
    """x·(θ + z·η) of each candidate in each slot, [n, K, R]."""
    level, trend = (inputs @ part for part in np.split(coefficients, 2))  # [n, R] each
    utilities: Floats = level[:, None, :] + depths(slots)[:, None] * trend[:, None, :]
    return utilities
