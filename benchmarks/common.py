"""What every benchmark shares: one JSON object a measurement, and the same rows as a Markdown table."""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.plan import commit

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("duckdb", "numpy", "pandas", "polars", "pyarrow", "torch")
T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    what: str
    value: float
    unit: str
    baseline: float | None = None  # what ``what`` is compared with, in the same unit, measured in the same run
    ratio: float | None = None  # value / baseline
    peak_rss_mb: float | None = None  # of the process that was measured, by default this one


@dataclass(frozen=True)
class Metered(Generic[T]):
    """What a function gave and what it took, in a process that did nothing else."""

    result: T
    seconds: float
    cpu_seconds: float
    peak_rss_mb: float


def alone(function: Callable[..., T], *arguments: object) -> Metered[T]:
    """Call a function in a fresh process: its peak memory is its own, and its imports are not timed."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_metered, function, *arguments).result()


def _metered(function: Callable[..., T], *arguments: object) -> Metered[T]:
    start, before = time.perf_counter(), os.times()
    result = function(*arguments)
    seconds, after = time.perf_counter() - start, os.times()
    spent = sum(after[:4]) - sum(before[:4])  # user and system, of this process and of those that it waited for
    return Metered(result, seconds, spent, peak_rss_mb())


def publish(name: str, measurements: Sequence[Measurement]) -> None:
    """Print the measurements as a table and append them to ``results/<name>.jsonl``."""
    print("| what | value | unit | baseline | ratio | peak RSS, MB |\n| --- | ---: | --- | ---: | ---: | ---: |")
    for m in measurements:
        numbers = [_number(m.baseline), _number(m.ratio), _number(m.peak_rss_mb)]
        print(f"| {m.what} | {_number(m.value)} | {m.unit} | {' | '.join(numbers)} |")
    RESULTS.mkdir(exist_ok=True)
    surroundings = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "commit": commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as stream:
        for measurement in measurements:
            memory = {"peak_rss_mb": round(measurement.peak_rss_mb or peak_rss_mb())}
            stream.write(json.dumps(asdict(measurement) | memory | surroundings) + "\n")


def peak_rss_mb() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: there a child's ru_maxrss begins with what its parent held
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)  # macOS counts bytes, others kilobytes


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
