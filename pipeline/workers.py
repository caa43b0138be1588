"""Worker processes: one agent or seed each, one thread each, forked from a server that has imported torch already."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
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


def _context() -> BaseContext:
    """A fork server, whose imports are paid once a run; fresh interpreters where the system has none."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.preload"])
    return context
