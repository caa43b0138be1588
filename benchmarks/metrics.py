"""How fast leg 1 turns rankings into metrics, against ranx, and what memory a large test window takes.

Ours is measured as the pipeline runs it: chunk by chunk from candidates and an order to the rows of ``rerank``.
ranx is compiled and warm, and given what is cheapest for it: arrays that are built and sorted beforehand, of a
session's positives only, and no results kept by query id. Both do all metrics of every session. numpy and torch have
one thread throughout; ranx is measured with one core, in CPU seconds, and with all cores, by the clock: read that row
from an idle machine only.

Run from the repository: ``python -m benchmarks.metrics --sessions 1000000``.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.common import Measurement, alone, publish
from benchmarks.fitted_simulators import HISTORY, ITEMS, USER_WIDTH, make_task
from models.feedback import Feedback
from models.heuristics import RandomConfig
from pipeline.evaluation.metrics import Floats, rank_metrics
from pipeline.evaluation.rerank import MODES, Ranked, ranking_table, rerank, session_table
from pipeline.evaluation.sessions import CandidateSessions, iter_sessions
from pipeline.experiment import History
from pipeline.schemas import COUNTERS, HIT_CUTOFFS, NDCG_CUTOFFS, RERANK_METRICS, SCHEMAS
from pipeline.warehouse import write_parquet

SEED = 7
LENGTH = 20  # items of a session
SHARES = {Feedback.SKIP: 0.85, Feedback.CLICK: 0.12, Feedback.PURCHASE: 0.03}
REWARDS = {Feedback.SKIP: 0.0, Feedback.CLICK: 1.0, Feedback.PURCHASE: 5.0}
BATCH = 50_000  # sessions that are made up at a time
BINARY = {  # of ranx, by our names; its qrels say which items are positive
    "map": "map",
    "mrr": "mrr",
    "precision_20": "precision@20",
    "recall_20": "recall@20",
    "f1_20": "f1@20",
    **{f"ndcg_{k}": f"ndcg@{k}" for k in NDCG_CUTOFFS},
    **{f"hit_{k}": f"hit_rate@{k}" for k in HIT_CUTOFFS},
}
GRADED = {f"ndcg_reward_{k}": f"ndcg@{k}" for k in NDCG_CUTOFFS}  # its qrels hold the rewards
Chunk = tuple[CandidateSessions, Ranked]


@dataclass(frozen=True)
class Speed:
    """Seconds of one core, but those ``on all cores``, which are of the clock."""

    rows: float
    rows_clock: float
    metrics: float
    ranx: float
    ranx_on_all_cores: float
    difference: float  # the largest to ranx, of any metric and session


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sessions", type=int, default=1_000_000, help="of the log whose memory is measured")
    arguments.add_argument("--compared", type=int, default=100_000, help="sessions of the comparison with ranx")
    arguments.add_argument("--repeat", type=int, default=7)
    options = arguments.parse_args()
    # Read when numpy and numba are loaded, hence by the processes that measure.
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "0"}
    publish("metrics", [*compare(options.compared, options.repeat), *remember(options.sessions)])


def compare(sessions: int, repeat: int) -> list[Measurement]:
    """Ours against ranx on the same rankings, in the same process, in turn."""
    metered = alone(speed, sessions, repeat)
    found = metered.result
    what = f"{sessions:,} sessions of {LENGTH} items: {len(RERANK_METRICS)} metrics"
    threads = f"ranx on {os.cpu_count()} cores"
    compared = {
        f"{what} and their rows, against ranx": ("CPU s", found.rows, found.ranx),
        f"{what} alone, against ranx": ("CPU s", found.metrics, found.ranx),
        f"{what} and their rows, against {threads}": ("s", found.rows_clock, found.ranx_on_all_cores),
    }
    memory = metered.peak_rss_mb  # of both sides together
    return [
        *(
            Measurement(text, ours, unit, theirs, ours / theirs, memory)
            for text, (unit, ours, theirs) in compared.items()
        ),
        Measurement(f"{what}, largest difference to ranx", found.difference, "", peak_rss_mb=memory),
    ]


def remember(sessions: int) -> list[Measurement]:
    """Time and peak memory of leg 1 over a whole log: from Parquet to ``rankings`` and ``rerank``."""
    with tempfile.TemporaryDirectory() as folder:
        log = alone(make_log, Path(folder), sessions).result
        found = alone(rerank_log, log, Path(folder))
    what = f"{sessions:,} sessions of {LENGTH} items ranked at random, {' and '.join(MODES)}"
    return [Measurement(f"{what}: all rows written", found.cpu_seconds, "CPU s", peak_rss_mb=found.peak_rss_mb)]


def make_log(folder: Path, sessions: int) -> Path:
    """A made-up table ``candidates``, a batch of sessions at a time."""
    rng, path = np.random.default_rng(SEED), folder / "candidates.parquet"
    write_parquet(
        path,
        "candidates",
        (_candidates(rng, start, min(BATCH, sessions - start)) for start in range(0, sessions, BATCH)),
    )
    return path


def _candidates(rng: np.random.Generator, start: int, size: int) -> pa.RecordBatch:
    codes = np.array(list(SHARES))
    feedback = rng.choice(codes, (size, LENGTH), p=list(SHARES.values()))
    rewards = np.zeros(max(Feedback) + 1)
    rewards[codes] = list(REWARDS.values())
    items = rng.integers(ITEMS, size=(size, 1)) + np.arange(LENGTH)  # distinct
    session_id = np.arange(start, start + size)
    columns = {
        "session_id": session_id,
        "split": np.repeat("test", size),
        "user": session_id % 1_000,
        "user_key": session_id // 2,
        "start_ts": session_id,
        "user_features": _lists(rng.random((size, USER_WIDTH))),
        "initial_items": _lists(rng.integers(1, ITEMS + 1, (size, HISTORY))),
        "initial_feedback": _lists(np.full((size, HISTORY), Feedback.CLICK)),
        "items": _lists(items % ITEMS + 1),
        "item_keys": _lists(items),
        "positions": _lists(np.tile(np.arange(LENGTH), (size, 1))),
        "feedback": _lists(feedback),
        "rewards": _lists(rewards[feedback]),
        "counters": _lists(rng.random((size, LENGTH * len(COUNTERS)))),
    }
    return pa.RecordBatch.from_pydict(columns).cast(SCHEMAS["candidates"])


def _lists(values: NDArray[np.generic]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])


def ranked(log: Path) -> Iterator[Chunk]:
    """The log's sessions as the random ranker orders them, mode by mode, in the chunks of the pipeline."""
    torch.set_num_threads(1)
    task, config = make_task(ITEMS), RandomConfig()
    agent = config.build(task, SEED)
    for mode in MODES:
        for sessions in iter_sessions([log], "test", task, History()):
            yield sessions, rerank(agent, config, task, sessions, mode)


def rerank_log(log: Path, folder: Path) -> None:
    """What the asset ``rerank`` does for one agent and seed."""
    with (
        pq.ParquetWriter(folder / "rankings.parquet", SCHEMAS["rankings"], compression="zstd") as rankings,
        pq.ParquetWriter(folder / "rerank.parquet", SCHEMAS["rerank"], compression="zstd") as sessions_out,
    ):
        for chunk in ranked(log):
            rankings.write_table(ranking_table(*chunk, "random", SEED))
            sessions_out.write_table(session_table(*chunk, "random", SEED))


def speed(sessions: int, repeat: int) -> Speed:
    """Both sides in turn, ``repeat`` times after a first time to warm up; the medians."""
    with tempfile.TemporaryDirectory() as folder:
        chunks = [chunk for chunk in ranked(make_log(Path(folder), sessions)) if chunk[1].mode == MODES[0]]
    rewards, scored = rewards_as_ranked(chunks), np.concatenate([part.scored.numpy() for part, _ in chunks])
    lengths, judge = np.full(sessions, LENGTH), Judge(rewards)
    theirs, ours = judge.evaluate(1), rank_metrics(rewards, rewards > 0, lengths)
    runs = [
        (
            *_timed(lambda: [session_table(*chunk, "random", SEED) for chunk in chunks]),
            _timed(lambda: rank_metrics(rewards, rewards > 0, lengths))[0],
            _timed(lambda: judge.evaluate(1))[0],
            _timed(lambda: judge.evaluate(os.cpu_count() or 1))[1],
        )
        for _ in range(repeat)
    ]
    difference = max(np.abs(ours[name] - theirs[name])[scored].max() for name in RERANK_METRICS)
    return Speed(*(median(column) for column in zip(*runs, strict=True)), difference=float(difference))


def rewards_as_ranked(chunks: list[Chunk]) -> NDArray[np.float32]:
    """The rewards of all sessions, best ranked first, [S, L]."""
    return np.concatenate([part.rewards.gather(1, found.order).numpy() for part, found in chunks])


class Judge:
    """ranx over rewards [S, L] in ranked order: documents are named by their ranks, scores are their negatives."""

    def __init__(self, rewards: NDArray[np.floating]) -> None:
        from numba.typed import List

        ranks = np.arange(float(rewards.shape[1]))
        positives = [np.flatnonzero(row > 0) for row in rewards]
        graded = [_by_relevance(items, row[items]) for items, row in zip(positives, rewards, strict=True)]
        binary = [_by_relevance(items, np.ones(len(items))) for items in positives]
        self.run = List([np.stack([ranks, -ranks], axis=1)] * len(rewards))
        self.labels = (List(binary), BINARY), (List(graded), GRADED)

    def evaluate(self, threads: int) -> dict[str, Floats]:
        """Every metric of each session, by our names."""
        from ranx import evaluate

        found = {}
        for qrels, names in self.labels:
            settings = {"return_mean": False, "save_results_in_run": False, "threads": threads}
            values = evaluate(qrels, self.run, list(names.values()), **settings)
            found |= {ours: values[theirs] for ours, theirs in names.items()}
        return found


def _by_relevance(items: NDArray[np.intp], gains: NDArray[np.floating]) -> Floats:
    """A session's qrels [R, 2], best first, as ranx sorts them."""
    order = np.argsort(-gains, kind="stable")
    return np.stack([items[order].astype(np.float64), gains[order].astype(np.float64)], axis=1)


def _timed(function: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds and seconds of the clock."""
    clock, cpu = time.perf_counter(), time.process_time()
    function()
    return time.process_time() - cpu, time.perf_counter() - clock


if __name__ == "__main__":
    main()
