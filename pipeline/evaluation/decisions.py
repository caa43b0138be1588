"""Logged pages as decisions: the state, what could have been shown, what was, and with which propensities.

Candidates are those that the log names (``pools``); else all that had been shown before, where that is little; else
the shown items and a uniform sample of it. Among the members of such a sample a softmax chooses with the odds that it
has among all items (McFadden 1978, "Modelling the choice of residential location": uniform conditioning). So a
behaviour policy that was fitted on samples can be held against a target on the same samples; the value is that of
choosing among them.

Propensities are the log's own where its candidates are known, else those of a ``ConditionalLogit``, fitted on the
validation window; its calibration on the test window is published beside them. The reward model of doubly robust
estimators is a ridge regression on the validation window too: r(x, a, k) = level(x, a) + z_k·trend(x, a), where z runs
from -1 in the first slot to 1 in the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from models.base import StateBatch, Task
from models.lambdamart import PairFeatures
from pipeline.counters import count_items
from pipeline.errors import DataError
from pipeline.evaluation.judged import STATE, Behaviour, Decisions, to_lists, to_tensor
from pipeline.evaluation.ope.logged import Bools, Floats, Ints
from pipeline.evaluation.ope.policies import (
    ConditionalLogit,
    calibration,
    conditional_propensities,
    depths,
    marginal_propensities,
    open_candidates,
    slot_distributions,
)
from pipeline.evaluation.showings import Showings
from pipeline.schemas import COUNTERS, SCHEMAS
from pipeline.task import TASK_TABLES, load_task
from pipeline.trajectories import earlier, pad_left, page_states, place, ragged
from pipeline.warehouse import connect, run_sql, write_parquet

if TYPE_CHECKING:
    import duckdb

    from pipeline.experiment import Experiment

TABLES = ("events", "pools", "impressions", "sessions", "splits", *TASK_TABLES)
CHUNK = 2_048  # pages whose features are in memory at once
CALIBRATED = 2_048  # pages at most that the reliability plot is made of
MARGINAL_ONLY = {"open_bandit"}  # sources whose propensities are of an item in its slot, whatever stands above
RIDGE = 10.0
MISMATCH = 0.01  # mean relative difference of logged propensities and those of the logged logits


def build_decisions(inputs: Mapping[str, Sequence[Path]], experiment: Experiment, out: Path) -> None:
    """Write ``decisions``, ``ope_calibration`` and ``ope_chances`` into ``out`` from the published files of TABLES."""
    task = load_task({table: list(inputs[table]) for table in TASK_TABLES}, experiment)
    with connect({table: inputs[table] for table in TABLES if table != "trajectories"}) as con:
        page_states(con, experiment)
        [(pooled,)] = con.sql("select count(*) from pools").fetchall()
        known = run_sql(con, "staging/decision_catalogue").to_arrow_table()
        showings = Showings(run_sql(con, "staging/decision_showings").to_arrow_table())
        earlier_pages, pages = (
            _logged(con, split, most, experiment)
            for split, most in (("validation", experiment.ope.fit_pages), ("test", experiment.ope.pages))
        )
        pool = "logged" if pooled else "catalogue" if len(known) <= experiment.ope.pool else "sampled"
        fit, test = (_decisions(table, pool, known, experiment, task) for table in (earlier_pages, pages))
        counters = _counters(con, test, pages)
    rows: Iterator[pa.RecordBatch] = iter(())
    bins, chances = SCHEMAS["ope_calibration"].empty_table(), SCHEMAS["ope_chances"].empty_table()
    if len(fit) and len(test):
        inputs_of = Inputs(task, showings)
        behaviour, found = _behaviour(fit, test, pool, experiment, inputs_of)
        rows = _rows(test, counters, behaviour, RewardModel(inputs_of).fit(fit), pool)
        drawn = test[slice(CALIBRATED)]
        slate, mask = drawn.slate.numpy(), drawn.mask.numpy()
        bins = pa.Table.from_pylist(calibration(found, slate, mask), schema=bins.schema)
        chances = _chances(drawn, found)
    write_parquet(out / "decisions.parquet", "decisions", rows)
    write_parquet(out / "ope_calibration.parquet", "ope_calibration", bins.to_batches())
    write_parquet(out / "ope_chances.parquet", "ope_chances", chances.to_batches())


def _logged(con: duckdb.DuckDBPyConnection, split: str, pages: int, experiment: Experiment) -> pa.Table:
    params = {"split": split, "pages": pages, "seed": experiment.seeds[0], "cols": experiment.sessions.cols}
    return run_sql(con, "staging/decision_pages", params).to_arrow_table()


def _counters(con: duckdb.DuckDBPyConnection, decisions: Decisions, pages: pa.Table) -> Floats:
    """[N, C] what the log had counted of the N candidates of all pages, strictly before each; NaN where unknown."""
    mask = decisions.mask.numpy()
    page = np.repeat(np.arange(len(mask)), mask.sum(axis=1))
    places = {name: getattr(decisions, name).numpy()[page] for name in ("session_id", "step")}
    con.register("page_times", pages.select(["session_id", "step", "page_ts"]))
    con.register("candidates", pa.table(places | {"n": np.arange(len(page)), "item_key": decisions.keys.numpy()[mask]}))
    con.execute(
        "create table offered as select n, item_key, page_ts as ts "
        "from candidates join page_times using (session_id, step)"
    )
    con.execute("create table questions as select distinct item_id, ts from offered join items using (item_key)")
    count_items(con)
    found = run_sql(con, "staging/decision_counters").to_arrow_table()
    nothing = [0.0] * (len(COUNTERS) - 1) + [None]  # of what no catalogue describes
    return ragged(pc.fill_null(found["counters"], nothing))[0].reshape(-1, len(COUNTERS))


def _decisions(table: pa.Table, pool: str, known: pa.Table, experiment: Experiment, task: Task) -> Decisions:
    """Pages with their candidates; without those that show an item twice, or one that their pool does not hold."""
    slots, n = experiment.sessions.page_size, len(table)
    names = ("action", "feedback", "rewards", "propensities", "item_keys")
    placed = {name: place(table, name, slots) for name in names}
    shown = placed["feedback"] > 0  # [n, K]
    if pool == "logged":
        lengths = ragged(table["pool_keys"])[1]
        width = int(lengths.max(initial=1))
        mask = np.arange(width) >= width - lengths[:, None]
        items, keys, logits = (pad_left(table[name], width) for name in ("pool_items", "pool_keys", "pool_logits"))
        logits = np.where(mask, logits, np.nan)
    else:
        items, keys, mask = _drawn(table, placed["action"], placed["item_keys"], shown, known, experiment)
        logits = np.full(items.shape, np.nan)
    decisions = Decisions(
        session_id=to_tensor(table["session_id"]),
        user_key=to_tensor(table["user_key"]),
        step=to_tensor(table["step"]),
        hour=to_tensor(table["hour"]),
        state=_states(table, placed, experiment, task),
        items=torch.from_numpy(items.astype(np.int64)),
        keys=torch.from_numpy(keys.astype(np.int64)),
        mask=torch.from_numpy(mask),
        slate=torch.zeros(n, slots, dtype=torch.int64),
        feedback=torch.from_numpy(placed["feedback"].astype(np.int64)),
        rewards=torch.from_numpy(placed["rewards"]),
        propensities=torch.from_numpy(placed["propensities"].astype(np.float64)),
        logits=torch.from_numpy(logits.astype(np.float64)),
    )
    return _with_slates(decisions, torch.from_numpy(placed["item_keys"].astype(np.int64)), torch.from_numpy(shown))


def _states(table: pa.Table, placed: dict[str, Any], experiment: Experiment, task: Task) -> StateBatch:
    step, history = table["step"].to_numpy(), experiment.history
    lists = {
        name: torch.from_numpy(pad_left(table[name], history.positives).astype(np.int64))
        for name in ("initial_items", "initial_feedback", "history_items", "history_feedback", "skipped_items")
    }
    features = ragged(table["user_features"])[0].astype(np.float32).reshape(len(table), task.user_width)
    return StateBatch(
        user_features=torch.from_numpy(features),
        page_items=torch.from_numpy(earlier(placed["action"], step, history.pages).astype(np.int64)),
        page_feedback=torch.from_numpy(earlier(placed["feedback"], step, history.pages).astype(np.int64)),
        pages_seen=to_tensor(table["step"]),
        **lists,
    )


def _drawn(
    pages: pa.Table, action: Ints, keys: Ints, shown: Bools, known: pa.Table, experiment: Experiment
) -> tuple[Ints, Ints, Bools]:
    """The shown items beside all that had been shown before, or a uniform sample, each once: items, keys, mask [n, R].

    What was to be shown for the first time later is no candidate: no ranker could have chosen it.
    """
    n, size = len(action), experiment.ope.pool
    earlier_items = np.searchsorted(_micros(known["first_ts"]), _micros(pages["page_ts"]))[:, None]  # [n, 1]
    if len(known) <= size:
        drawn = np.tile(np.arange(len(known)), (n, 1))
    else:
        rng = np.random.default_rng([experiment.seeds[0], n])
        drawn = (rng.random((n, max(1, size - action.shape[1]))) * earlier_items).astype(np.int64)
    items = np.hstack([action, known["item"].to_numpy()[drawn]])
    keys = np.hstack([keys, known["item_key"].to_numpy()[drawn]])
    mask = np.hstack([shown, drawn < earlier_items])
    order = np.argsort(np.where(mask, keys, -1), axis=1, kind="stable")  # shown items first among equals
    ordered = np.take_along_axis(np.where(mask, keys, -1), order, axis=1)
    again = np.zeros_like(mask)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return items, keys, mask & ~again


def _micros(times: pa.ChunkedArray) -> Ints:
    moments: Ints = times.cast(pa.int64()).to_numpy()
    return moments


def _with_slates(decisions: Decisions, shown_keys: Tensor, shown: Tensor) -> Decisions:
    """Candidates in the order of their hash; where each shown item stands among them; sound pages only."""
    last = torch.iinfo(torch.int64).max
    order = decisions.tie.masked_fill(~decisions.mask, last).argsort(dim=1)  # [n, R], padding last
    width = int(decisions.mask.sum(dim=1).max()) if len(decisions) else 0
    order = order[:, :width]
    items, keys, mask, logits = (
        values.gather(1, order) for values in (decisions.items, decisions.keys, decisions.mask, decisions.logits)
    )
    match = (keys[:, None] == shown_keys[:, :, None]) & mask[:, None] & shown[:, :, None]  # [n, K, R]
    sound = (match.sum(dim=2) == shown).all(dim=1) & (match.sum(dim=1) <= 1).all(dim=1) & shown.any(dim=1)
    slate = torch.where(shown, match.int().argmax(dim=2), -1) if width else decisions.slate
    changed = replace(decisions, items=items, keys=keys, mask=mask, logits=logits, slate=slate)
    return changed[sound]


class Inputs:
    """What models see of decisions: ``PairFeatures``, and how often the log had shown each candidate."""

    def __init__(self, task: Task, showings: Showings) -> None:
        self.features, self.showings, self.device = PairFeatures(task), showings, task.device
        self.of_pair = self.features.width - task.user_width - 3  # the rest is the same for all candidates

    def of_reward(self, decisions: Decisions) -> Floats:
        """[n, R, F] float64; features of the user alone come last."""
        with torch.no_grad():
            part = decisions.to(self.device)
            found: Floats = self.features(part.state, part.items).cpu().double().numpy()
        return found

    def of_choice(self, decisions: Decisions) -> Floats:
        """[n, R, F] float64: what differs between the candidates of a page."""
        showings = self.showings(decisions.keys.numpy(), decisions.hour.numpy())
        return np.concatenate([self.of_reward(decisions)[:, :, : self.of_pair], showings], axis=2)


def _behaviour(
    fit: Decisions, test: Decisions, pool: str, experiment: Experiment, inputs: Inputs
) -> tuple[Behaviour, Floats]:
    """Who made the log, and the chances of every candidate in every slot of the first pages [n, K, R]."""
    slate, mask = test.slate.numpy(), test.mask.numpy()
    shown = slate >= 0
    logged = np.where(shown, test.propensities.numpy(), 1.0)
    is_logged = pool != "sampled" and not np.isnan(logged).any()
    some = slice(0, CALIBRATED)
    if is_logged and not np.isnan(test.logits.numpy()[mask]).any():
        logits = np.where(mask, test.logits.numpy(), -np.inf)
        conditional = conditional_propensities(logits, slate)
        _same(logged, conditional, shown)
        first = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        made = Behaviour(conditional, marginal_propensities(logits, slate), first, "logged")
        return made, slot_distributions(logits[some], slate[some])
    models = [
        ConditionalLogit(marginal=marginal).fit(inputs.of_choice(fit), fit.slate.numpy(), fit.mask.numpy())
        for marginal in (False, True)
    ]
    chances, marginals, first = _fitted(models, test, inputs)
    conditional, kind = (logged, "logged") if is_logged else (chances, "fitted")
    if is_logged and (slate.shape[1] == 1 or experiment.source.kind in MARGINAL_ONLY):
        marginals, kind = logged, "logged" if slate.shape[1] == 1 else "logged by slot"
    found = models[0].distributions(inputs.of_choice(test[some]), slate[some], mask[some])
    return Behaviour(conditional, marginals, first, kind), found


def _fitted(models: Sequence[ConditionalLogit], test: Decisions, inputs: Inputs) -> tuple[Floats, Floats, Floats]:
    """Conditional and marginal propensities [n, K] and the first slot's [n, R], as fitted."""
    found: list[tuple[Floats, Floats, Floats]] = []
    for start in range(0, len(test), CHUNK):
        part = test[slice(start, start + CHUNK)]
        asked = inputs.of_choice(part), part.slate.numpy(), part.mask.numpy()
        conditional, marginal = (model.propensities(*asked) for model in models)
        found.append((conditional, marginal, models[0].distributions(*asked)[:, 0]))
    conditional, marginal, first = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return conditional, marginal, first


def _lists(rows: Floats, borders: Ints) -> pa.Array:
    """Rows [N, C] as a list for each pair of neighbouring borders, NaN as null."""
    flat = rows[borders[0] : borders[-1]].ravel()
    offsets = ((borders - borders[0]) * rows.shape[1]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, from_pandas=True))


def _chances(pages: Decisions, chances: Floats) -> pa.Table:
    """A row a filled slot with the chance of each candidate, null of one that could not come there any more."""
    slate = pages.slate.numpy()
    n, slots, width = chances.shape
    offsets = pa.array(np.arange(n * slots + 1, dtype=np.int32) * width)
    closed = ~open_candidates(slate, pages.mask.numpy())
    table = pa.table(
        {
            "session_id": np.repeat(pages.session_id.numpy(), slots),
            "step": np.repeat(pages.step.numpy(), slots),
            "slot": np.tile(np.arange(1, slots + 1, dtype=np.int32), n),
            "shown": slate.astype(np.int32).ravel(),
            "chances": pa.ListArray.from_arrays(offsets, pa.array(chances.ravel(), mask=closed.ravel())),
        }
    )
    return table.filter(pc.greater_equal(table["shown"], 0)).cast(SCHEMAS["ope_chances"])


def _same(logged: Floats, computed: Floats, shown: Bools) -> None:
    """Raise DataError where the logged propensities are not those of the logged logits."""
    gap = float(np.abs(logged / computed - 1)[shown].mean())
    if gap > MISMATCH:
        raise DataError(f"pools: the logits give propensities that differ from the logged ones by {gap:.0%} on "
                        "average. Log the logits of the softmax that drew the page, or leave them out.")  # fmt: skip


class RewardModel:
    """r(x, a, k) = level(x, a) + z_k·trend(x, a): a ridge regression of a slot's reward on standardised features."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.scaler, self.ridge = inputs, StandardScaler(), Ridge(alpha=RIDGE)

    def fit(self, decisions: Decisions) -> RewardModel:
        shown = (decisions.slate >= 0).numpy()
        chosen = np.maximum(decisions.slate.numpy(), 0)[:, :, None]
        rows = np.take_along_axis(self.inputs.of_reward(decisions), chosen, axis=1)[shown]  # [slots, F]
        depth = np.broadcast_to(depths(shown.shape[1]), shown.shape)[shown][:, None]
        scaled = self.scaler.fit_transform(rows)
        self.ridge.fit(np.hstack([scaled, depth * scaled, depth]), decisions.rewards.numpy()[shown])
        return self

    def predict(self, decisions: Decisions) -> tuple[Floats, Floats]:
        """Level and trend of every candidate, [n, R] each."""
        features = self.inputs.of_reward(decisions)
        scaled = self.scaler.transform(features.reshape(-1, features.shape[2])).reshape(features.shape)
        level, trend = np.split(self.ridge.coef_[:-1], 2)
        return scaled @ level + self.ridge.intercept_, scaled @ trend + self.ridge.coef_[-1]


def _rows(
    test: Decisions, counters: Floats, behaviour: Behaviour, rewards: RewardModel, pool: str
) -> Iterator[pa.RecordBatch]:
    """The published rows, a chunk of pages at a time."""
    first = np.concatenate([[0], test.mask.sum(dim=1).cumsum(0).numpy()])  # [n+1] candidates before each page
    for start in range(0, len(test), CHUNK):
        rows = slice(start, start + CHUNK)
        part = test[rows]
        level, trend = rewards.predict(part)
        mask = part.mask.numpy()
        columns = {
            **{name: pa.array(getattr(part, name).numpy()) for name in ("session_id", "user_key", "step")},
            **{name: to_lists(getattr(part.state, name)) for name in STATE},
            **{name: to_lists(getattr(part, name)) for name in ("slate", "feedback", "rewards")},
            "candidates": to_lists(part.items, mask),
            "candidate_keys": to_lists(part.keys, mask),
            "behaviour": to_lists(behaviour.conditional[rows]),
            "behaviour_marginal": to_lists(behaviour.marginal[rows]),
            "first_slot": to_lists(behaviour.first_slot[rows], mask),
            "reward_level": to_lists(level, mask),
            "reward_trend": to_lists(trend, mask),
            "counters": _lists(counters, first[start : start + CHUNK + 1]),
            "pool": pa.array([pool] * len(part)),
            "propensities": pa.array([behaviour.kind] * len(part)),
        }
        yield from pa.table(columns).to_batches()
