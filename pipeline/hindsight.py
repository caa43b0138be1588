"""GoalRec's hindsight: what was measured after an item was shown, and the goal that it would have been right for.

A measurement m sums up the rest of a session as seen from one shown item; its hindsight goal is the direction that m
reached best, g' = argmax_{‖g‖=1} gᵀ(m/σ) = (m/σ) / ‖m/σ‖ (Wang et al., "RL with a Disentangled Universal Value
Function for Item Recommendation", AAAI 2021, section "Hindsight"). Dividing by the training deviation σ, without
centring, is ours: the paper's components have different units and would not add up.

The paper's steps are single items. Ours are pages, which show their K items at once, so the trajectory of item i of
page t up to the horizon k is *the item itself, then the pages t+1 … k*; the items beside it belong to no trajectory of
it. A click is any positive feedback. An unknown item (0) counts as a click with a zero embedding. Components, in order:

    click            1 if the item was clicked
    exit             1 if the session terminated right after page t
    clicks           own click + clicks of pages t+1 … k
    click_ratio      clicks / (1 + items shown on pages t+1 … k)
    steps            k − t + 1 pages
    purchases        own purchase + purchases of pages t+1 … k
    embedding_0 …    mean PCA embedding of the clicked items among those, zeros if there are none
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.feedback import FIRST_POSITIVE, Feedback
from pipeline.errors import ConfigError, DataError, nearest

Array = NDArray[Any]

SCALARS = ("click", "exit", "clicks", "click_ratio", "steps", "purchases")
STRATEGIES = ("final", "future", "random")
SMALLEST_NORM = 1e-8  # below it a measurement has no direction: no goal can be told from it


def measurement_names(d_e: int) -> tuple[str, ...]:
    """The D = 6 + d_e component names in their order."""
    return (*SCALARS, *(f"embedding_{j}" for j in range(d_e)))


@dataclass(frozen=True)
class Pages:
    """R pages of S sessions, sorted by session and step; the steps of a session run 0, 1, … without a gap.

    Raises DataError where the arrays do not fit together.
    """

    offsets: Array  # [S+1] int, the first row of each session, then R
    items: Array  # [R, K] int, dense index
    feedback: Array  # [R, K] int, Feedback codes; NONE = empty slot
    terminated: Array  # [R] bool, the session ended after this page by the user's will, not by a length cap
    embeddings: Array  # [I+1, d_e] float, PCA-reduced item embeddings; row 0 is zeros

    def __post_init__(self) -> None:
        rows = len(self.items)
        lengths = np.diff(self.offsets)
        if not (len(self.offsets) and self.offsets[0] == 0 and self.offsets[-1] == rows and (lengths > 0).all()):
            raise DataError(f"Page offsets must rise from 0 to the {rows} rows; give the first row of each session.")
        if self.feedback.shape != self.items.shape or self.terminated.shape != (rows,):
            raise DataError(
                f"Pages of items {self.items.shape} need feedback of the same shape and terminated ({rows},); "
                f"got {self.feedback.shape} and {self.terminated.shape}."
            )
        if rows and not (self.items.min() >= 0 and self.items.max() < len(self.embeddings)):
            raise DataError(
                f"Item indices run from {self.items.min()} to {self.items.max()}, but there are embeddings for "
                f"0 to {len(self.embeddings) - 1}; map items not seen in the training window to 0."
            )

    def __len__(self) -> int:
        return len(self.items)

    @property
    def clicked(self) -> Array:  # [R, K] bool
        return np.asarray(self.feedback >= FIRST_POSITIVE)

    @property
    def bought(self) -> Array:  # [R, K] bool
        return np.asarray(self.feedback == Feedback.PURCHASE)

    @property
    def shown(self) -> Array:  # [R, K] bool
        return np.asarray(self.feedback > Feedback.NONE)


def horizons(offsets: Array, strategy: str, rng: np.random.Generator) -> Array:
    """The step up to which each row's measurement looks, inclusive, [R] int64.

    ``final``: the session's last step T; ``future``: uniform over the steps after the row's own, T at the last one;
    ``random``: uniform from the row's own step to T.
    """
    step, last = _steps(offsets)
    if strategy == "final":
        return last
    if strategy == "future":
        return rng.integers(np.minimum(step + 1, last), last + 1)
    if strategy == "random":
        return rng.integers(step, last + 1)
    raise ConfigError(f"hindsight.strategy: {strategy!r} is unknown; {nearest(strategy, STRATEGIES)}")


def measurements(pages: Pages, horizon: Array) -> Array:
    """Measurements of each shown item up to its row's horizon, [R, K, D] float32 in raw units; empty slots are zero.

    ``horizon`` [R] holds steps of the session (see ``horizons``); DataError where one lies outside the session.
    """
    step, last = _steps(pages.offsets)
    if np.shape(horizon) != step.shape or not ((horizon >= step) & (horizon <= last)).all():
        raise DataError("A horizon lies before its own page or after its session's end; take them from horizons().")
    after = np.arange(len(pages)) + 1  # [R] first row after page t
    end = after + (horizon - step)  # [R] first row after the horizon

    def later(per_page: Array) -> Array:
        """Sums over the pages t+1 … k of [R, …] values, as [R, 1, …]."""
        prefix = np.zeros((len(per_page) + 1, *per_page.shape[1:]))
        np.cumsum(per_page, axis=0, out=prefix[1:])
        return np.expand_dims(prefix[end] - prefix[after], 1)

    liked = pages.embeddings[pages.items] * pages.clicked[..., None]  # [R, K, d_e]
    clicks = pages.clicked + later(pages.clicked.sum(1))  # [R, K]
    scalars = {
        "click": pages.clicked,
        "exit": pages.terminated[:, None],
        "clicks": clicks,
        "click_ratio": clicks / (1 + later(pages.shown.sum(1))),
        "steps": (horizon - step + 1)[:, None],
        "purchases": pages.bought + later(pages.bought.sum(1)),
    }
    measured = np.empty((*pages.items.shape, len(SCALARS) + pages.embeddings.shape[1]), np.float32)
    for j, name in enumerate(SCALARS):
        measured[..., j] = scalars[name]
    measured[..., len(SCALARS) :] = _mean(liked + later(liked.sum(1)), clicks)
    measured[~pages.shown] = 0
    return measured


def session_measurements(pages: Pages) -> Array:
    """Measurements of whole sessions, [S, D] float32: the first page as one step, then all later pages.

    ``click`` and ``exit`` speak of the first page (was anything on it clicked, did the session end there).
    """
    first = pages.offsets[:-1]

    def total(per_page: Array) -> Array:
        return np.add.reduceat(per_page.astype(np.float64), first, axis=0) if len(first) else per_page[:0]

    clicks = total(pages.clicked.sum(1))  # [S]
    liked = pages.embeddings[pages.items] * pages.clicked[..., None]  # [R, K, d_e]
    scalars = {
        "click": pages.clicked[first].any(1),
        "exit": pages.terminated[first],
        "clicks": clicks,
        "click_ratio": clicks / np.maximum(total(pages.shown.sum(1)), 1),
        "steps": np.diff(pages.offsets),
        "purchases": total(pages.bought.sum(1)),
    }
    columns = [np.asarray(scalars[name], np.float64)[:, None] for name in SCALARS]
    return np.concatenate([*columns, _mean(total(liked.sum(1)), clicks)], axis=1).astype(np.float32)


def scale(measured: Array, mask: Array) -> Array:
    """Standard deviation of each component over the training rows' shown items, [D] float32; 1 where it is zero.

    ``measured`` [..., D] and ``mask`` [...] (False = empty slot) must come from the training window only.
    """
    rows = measured[mask]
    if not len(rows):
        return np.ones(measured.shape[-1], np.float32)
    # numpy's float32 mean over millions of rows is off by more than the deviation of a constant component.
    deviation = rows.std(axis=0, dtype=np.float64)
    return np.where(deviation > SMALLEST_NORM, deviation, 1.0).astype(np.float32)


def goals(measured: Array, deviation: Array) -> tuple[Array, Array]:
    """Hindsight goals g' = (m/σ)/‖m/σ‖ of measurements [..., D], and the rows to skip [...]: those without a direction.

    ``deviation`` is σ [D] of ``scale``. Goals of skipped rows are zero.
    """
    normal = measured / deviation.astype(np.float64)
    norm = np.linalg.norm(normal, axis=-1)
    skip = norm < SMALLEST_NORM
    unit = normal / np.where(skip, np.inf, norm)[..., None]
    return unit.astype(np.float32), skip


def session_goals(pages: Pages, deviation: Array) -> tuple[Array, Array]:
    """The original goal of each row, [R, D], and the rows to skip [R].

    The goal that the logging policy followed is unknown; the hindsight goal of the *whole* session stands for it, the
    same for all rows of a session.
    """
    unit, skip = goals(session_measurements(pages), deviation)
    session = np.repeat(np.arange(len(unit)), np.diff(pages.offsets))  # [R]
    return unit[session], skip[session]


def fit_pca(embeddings: Array, d_e: int) -> Array:
    """The first d_e principal components of the known items, [I+1, d_e] float32; row 0 (unknown) stays zero.

    ``embeddings`` is [I+1, E]. The largest loading of each axis is made positive, so that the result does not hang on
    the solver's choice of sign. Axes beyond the rank are zeros.
    """
    known = embeddings[1:].astype(np.float64)
    reduced = np.zeros((len(embeddings), d_e), np.float32)
    if len(known) and d_e:
        centred = known - known.mean(axis=0)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:d_e]  # [≤ d_e, E]
        largest = np.abs(axes).argmax(axis=1)
        axes *= np.sign(axes[np.arange(len(axes)), largest])[:, None]
        reduced[1:, : len(axes)] = centred @ axes.T
    return reduced


def _steps(offsets: Array) -> tuple[Array, Array]:
    """Of each row: its step within its session and the session's last step, [R] int64 both."""
    lengths = np.diff(offsets).astype(np.int64)
    step = np.arange(lengths.sum()) - np.repeat(offsets[:-1], lengths)
    return step, np.repeat(lengths - 1, lengths)


def _mean(total: Array, count: Array) -> Array:
    """total [..., d] / count [...], zeros where nothing was counted (there a prefix sum leaves rounding errors)."""
    return np.where(count[..., None] > 0, total / np.maximum(count, 1)[..., None], 0.0)
