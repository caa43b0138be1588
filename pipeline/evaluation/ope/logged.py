"""What an off-policy estimate is computed from: the log's rewards beside two policies' propensities of what was shown.

Each kind is written to Parquet and read back with one schema, so that any published number can be computed again.
``behaviour`` is the policy that made the log, ``target`` the one to be judged; both propensities are of the *logged*
action. ``q_logged`` is what a model expects of the logged action, ``v_target`` of the target policy in the same state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ONE = 1 + 1e-6  # propensities that were float32 may exceed 1 by a rounding error
NUMBER, NUMBERS = pa.float64(), pa.list_(pa.float64())


def _schema(needed: dict[str, pa.DataType], optional: dict[str, pa.DataType]) -> pa.Schema:
    columns = [pa.field(name, kind, nullable=False) for name, kind in needed.items()]
    return pa.schema(columns + [pa.field(name, kind) for name, kind in optional.items()])


class _Logged:
    """Columns of equal length, checked when they are put together; floats are float64 whatever they came as."""

    SCHEMA: ClassVar[pa.Schema]

    def __post_init__(self) -> None:
        kinds = {pa.float64(): np.float64, pa.int64(): np.int64, pa.bool_(): np.bool_}
        for field in self.SCHEMA:
            value = getattr(self, field.name)
            if value is not None:
                kind = kinds[field.type.value_type if pa.types.is_list(field.type) else field.type]
                object.__setattr__(self, field.name, np.ascontiguousarray(value, dtype=kind))
        if not len(self):
            raise DataError(f"{type(self).__name__}: the log is empty. Estimate from one with at least two users.")
        self._check()

    def _check(self) -> None:
        raise TypeError(f"{type(self).__name__} must define _check()")

    def write(self, path: Path) -> None:
        columns = [_to_arrow(getattr(self, field.name), len(self), field) for field in self.SCHEMA]
        pq.write_table(pa.table(columns, schema=self.SCHEMA), path)

    @classmethod
    def read(cls, path: Path) -> Self:
        table = pq.read_table(path)
        if not table.schema.equals(cls.SCHEMA):
            raise DataError(f"{path} holds the columns {', '.join(table.column_names)}, not those of a "
                            f"{cls.__name__}. Write it with {cls.__name__}.write.")  # fmt: skip
        return cls(**{name: _from_arrow(table[name]) for name in table.column_names})

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def _same_shape(self, names: Sequence[str], shape: tuple[int, ...]) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value.shape[: len(shape)] != shape:
                raise DataError(f"{type(self).__name__}: {name} has the shape {value.shape} where the others have "
                                f"{shape}. Give one value for each logged action.")  # fmt: skip

    def _within(self, names: Sequence[str], low: float, high: float, mask: Bools | None = None) -> None:
        """Every number lies in (low, high]; NaN lies nowhere."""
        for name in names:
            value = getattr(self, name)
            if value is None:
                continue
            bad = ~((value > low) & (value <= high))
            bad &= True if mask is None else mask
            if bad.any():
                place = tuple(np.argwhere(bad)[0].tolist())
                raise DataError(f"{type(self).__name__}: {name} is {value[place]:g} in row {place[0]}. "
                                f"{_REMEDIES.get(name, 'Every number must be finite.')}")  # fmt: skip

    def _propensities(self, behaviour: Sequence[str], target: Sequence[str], mask: Bools | None = None) -> None:
        self._within(behaviour, 0, ONE, mask)
        self._within(target, np.nextafter(0, -1), ONE, mask)

    def _finite(self, names: Sequence[str]) -> None:
        self._within(names, -np.inf, np.finfo(np.float64).max)


_BEHAVIOUR = (
    "What was logged had a chance above 0 and at most 1: leave out rows without one, or fit a behaviour policy."
)
_TARGET = "A propensity lies between 0 and 1."
_REMEDIES = {
    "behaviour": _BEHAVIOUR,
    "behaviour_marginal": _BEHAVIOUR,
    "target": _TARGET,
    "target_marginal": _TARGET,
}


@dataclass(frozen=True)
class LoggedSteps(_Logged):
    """n single decisions, each with its own reward."""

    SCHEMA = _schema(
        {"reward": NUMBER, "behaviour": NUMBER, "target": NUMBER, "user_key": pa.int64()},
        {"q_logged": NUMBER, "v_target": NUMBER},
    )

    reward: Floats  # [n]
    behaviour: Floats  # [n] > 0
    target: Floats  # [n]
    user_key: Ints  # [n] rows of one user are not independent
    q_logged: Floats | None = None  # [n]
    v_target: Floats | None = None  # [n]

    def _check(self) -> None:
        self._same_shape(self.SCHEMA.names, (len(self),))
        self._finite(("reward", "q_logged", "v_target"))
        self._propensities(("behaviour",), ("target",))

    @property
    def ratio(self) -> Floats:
        """π(a | x) / μ(a | x), [n]."""
        return self.target / self.behaviour


@dataclass(frozen=True)
class LoggedSlates(_Logged):
    """n pages of K slots. ``behaviour`` and ``target`` are conditional on the slots above; marginals are of the slot.

    For cascade-DR, ``q_logged`` is the reward expected from a slot on, given it and the slots above; ``v_target`` is
    its mean over what the target policy would put there. ``projection`` is the pseudo-inverse weight of the page
    (``slates.projection``). Where ``mask`` is False there is no slot: no other value counts.
    """

    SCHEMA = _schema(
        {"reward": NUMBERS, "behaviour": NUMBERS, "target": NUMBERS, "mask": pa.list_(pa.bool_()),
         "user_key": pa.int64()},
        {"behaviour_marginal": NUMBERS, "target_marginal": NUMBERS, "q_logged": NUMBERS, "v_target": NUMBERS,
         "projection": NUMBER},
    )  # fmt: skip

    reward: Floats  # [n, K]
    behaviour: Floats  # [n, K] > 0
    target: Floats  # [n, K]
    mask: Bools  # [n, K]
    user_key: Ints  # [n]
    behaviour_marginal: Floats | None = None  # [n, K] > 0
    target_marginal: Floats | None = None  # [n, K]
    q_logged: Floats | None = None  # [n, K]
    v_target: Floats | None = None  # [n, K]
    projection: Floats | None = None  # [n]

    def _check(self) -> None:
        if self.reward.ndim != 2:
            raise DataError(f"LoggedSlates: reward has the shape {self.reward.shape}. Give one row a page and one "
                            "column a slot.")  # fmt: skip
        cells = [name for name in self.SCHEMA.names if name not in ("user_key", "projection")]
        self._same_shape(cells, self.reward.shape)
        self._same_shape(("user_key", "projection"), (len(self),))
        for name in ("reward", "q_logged", "v_target"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.where(self.mask, value, 0.0))
        self._finite(("reward", "q_logged", "v_target", "projection"))
        self._propensities(("behaviour", "behaviour_marginal"), ("target", "target_marginal"), self.mask)

    @property
    def ratio(self) -> Floats:
        """π(a_k | x, slots above) / μ(a_k | x, slots above), [n, K]; 1 where there is no slot."""
        return self._ratio(self.target, self.behaviour)

    @property
    def marginal_ratio(self) -> Floats:
        """π(a_k in slot k | x) / μ(a_k in slot k | x), [n, K]; 1 where there is no slot."""
        if self.target_marginal is None or self.behaviour_marginal is None:
            raise DataError("LoggedSlates: IIPS needs behaviour_marginal and target_marginal; compute both with "
                            "policies.marginal_propensities.")  # fmt: skip
        return self._ratio(self.target_marginal, self.behaviour_marginal)

    def _ratio(self, target: Floats, behaviour: Floats) -> Floats:
        return np.divide(target, behaviour, out=np.ones_like(target), where=self.mask)


@dataclass(frozen=True)
class LoggedTrajectories(_Logged):
    """Whole sessions: n steps in all, sorted by session and step, steps numbered from 0.

    For FQE, ``features`` are φ(s, a) of the logged action, ``target_features`` their mean Σ_a π(a|s) φ(s, a) over the
    target policy in the same state.
    """

    SCHEMA = _schema(
        {"session_id": pa.int64(), "step": pa.int64(), "reward": NUMBER, "behaviour": NUMBER, "target": NUMBER,
         "user_key": pa.int64()},
        {"q_logged": NUMBER, "v_target": NUMBER, "features": NUMBERS, "target_features": NUMBERS},
    )  # fmt: skip

    session_id: Ints  # [n]
    step: Ints  # [n]
    reward: Floats  # [n]
    behaviour: Floats  # [n] > 0
    target: Floats  # [n]
    user_key: Ints  # [n]
    q_logged: Floats | None = None  # [n]
    v_target: Floats | None = None  # [n]
    features: Floats | None = None  # [n, F]
    target_features: Floats | None = None  # [n, F]

    def _check(self) -> None:
        self._same_shape(self.SCHEMA.names, (len(self),))
        if self.features is not None:
            self._same_shape(("target_features",), self.features.shape)
        self._finite(("reward", "q_logged", "v_target", "features", "target_features"))
        self._propensities(("behaviour",), ("target",))
        self._check_order()

    def _check_order(self) -> None:
        new = np.diff(self.session_id, prepend=self.session_id[:1] - 1) != 0
        expected = np.where(new, 0, np.roll(self.step, 1) + 1)
        wrong = np.flatnonzero(self.step != expected)
        if len(wrong):
            row = int(wrong[0])
            raise DataError(f"LoggedTrajectories: row {row} is step {self.step[row]} of session "
                            f"{self.session_id[row]} where step {expected[row]} must be. Sort by session and step, "
                            "and number the steps from 0.")  # fmt: skip
        starts = self.session_id[new]
        if len(np.unique(starts)) < len(starts):
            raise DataError("LoggedTrajectories: the rows of a session do not lie together. Sort by session and step.")

    @property
    def first(self) -> Bools:
        """Where a session starts, [n]."""
        return np.equal(self.step, 0)

    @property
    def session(self) -> Ints:
        """The number of each row's session, from 0, [n]."""
        return np.cumsum(self.first) - 1

    def dense(self, values: Floats, fill: float) -> Floats:
        """``values`` [n] as a table [S, T] of sessions and steps, ``fill`` after a session's end."""
        table = np.full((int(self.first.sum()), int(self.step.max()) + 1), fill)
        table[self.session, self.step] = values
        return table

    def ratios(self) -> Floats:
        """π(a | s) / μ(a | s) as [S, T]; 1 after a session's end, where there is nothing left to choose."""
        return self.dense(self.target / self.behaviour, 1.0)


def _to_arrow(value: NDArray[Any] | None, n: int, field: pa.Field) -> pa.Array:
    if value is None:
        return pa.nulls(n, field.type)
    if value.ndim == 1:
        return pa.array(value, field.type)
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * value.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(value.ravel(), field.type.value_type))


def _from_arrow(column: pa.ChunkedArray) -> NDArray[Any] | None:
    values = column.combine_chunks()
    if values.null_count:
        return None  # _Logged.write leaves a whole column out or none of it
    if not pa.types.is_list(values.type):
        numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False)
        return numbers
    flat: NDArray[Any] = values.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(values), -1)
