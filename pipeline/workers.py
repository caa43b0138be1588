"""Worker processes: one agent or seed each, one thread each, forked from a server that has imported torch already."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_processes(function: Callable[[T], R], runs: list[T], device: str, workers: int | None = None) -> list[R]:
    """``function`` of each run, in the runs' order; on CPU in as many processes as there are cores, one thread each."""
    workers = workers or min(len(runs), multiprocessing.cpu_count())
    if workers < 2 or device != "cpu":
        return [function(run) for run in runs]
    results: dict[int, R] = {}
    with ProcessPoolExecutor(workers, mp_context=_context()) as pool:
        futures = {pool.submit(function, run): at for at, run in enumerate(runs)}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
    return [results[at] for at in range(len(runs))]


def warm_up() -> None:
    """Start the fork server now: its imports overlap with other work, and its workers write to today's stderr.

    Dagster captures the output of a step; a server started inside one would send all later progress bars there.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        _context()
        forkserver.ensure_running()


def _context() -> BaseContext:
    """A fork server, whose imports are paid once a run; fresh interpreters where the system has none."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.preload"])
    return context
