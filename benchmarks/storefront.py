"""How fast the storefront makes a log and a true value, and what the true values are.

Run from the repository: ``python -m benchmarks.storefront --users 4000`` (about a million impressions, one thread).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.common import Measurement, publish
from models.base import AgentConfig, Catalogue, StateBatch, Task
from models.heuristics import OracleFarsightedConfig, OracleMyopicConfig, RandomConfig
from models.simulators.storefront import Shoppers, Storefront, StorefrontConfig, seeded
from pipeline.evaluation.truth import Values, logging_value, true_value
from pipeline.source_settings import StorefrontSource
from pipeline.sources.storefront import StorefrontLog
from pipeline.sources.storefront_log import simulate

T = TypeVar("T")
SEED = 7
ALONE = 20  # users of the baseline that simulates one at a time


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--users", type=int, default=4000)
    users = arguments.parse_args().users
    torch.set_num_threads(1)
    shop = Storefront(StorefrontConfig(seed=SEED))
    publish("storefront", [*_log(shop, users), *_values(shop, shop.population(users, seeded(SEED, "benchmark")))])


def _log(shop: Storefront, users: int) -> list[Measurement]:
    with tempfile.TemporaryDirectory() as folder:
        log = StorefrontLog(StorefrontSource(kind="storefront", users=users, seed=SEED), Path(folder))
        files, seconds = _timed(log.discover)
        events = [file.path for file in files if file.kind == "events"]
        kinds = np.concatenate([pq.read_table(path, columns=["event_type"])["event_type"] for path in events])
    impressions = int((kinds == "impression").sum())
    alone, alone_seconds = _timed(lambda: [_simulate(shop, range(n, n + 1)) for n in range(ALONE)])
    rate, baseline = impressions / seconds, sum(alone) / alone_seconds
    return [
        Measurement(f"log of {impressions:,} impressions", seconds, "CPU s"),
        Measurement("log, against one user at a time", rate, "impressions / CPU s", baseline, rate / baseline),
    ]


def _simulate(shop: Storefront, users: range) -> int:
    pages, _ = simulate(shop, users, date(2024, 1, 1), days=30, seed=SEED)
    return pages.items.size


def _values(shop: Storefront, population: Shoppers) -> list[Measurement]:
    policies: dict[str, Callable[[], Values]] = {
        "random": lambda: _value(RandomConfig(), shop, population),
        "logging": lambda: logging_value(shop, population, SEED),
        "oracle_myopic": lambda: _value(OracleMyopicConfig(), shop, population),
        "oracle_farsighted": lambda: _value(OracleFarsightedConfig(), shop, population),
    }
    found = []
    for name, policy in policies.items():
        values, seconds = _timed(policy)
        found.append(Measurement(f"{name}: time of one value", seconds, "CPU s"))
        for metric, value in values.items():
            found.append(Measurement(f"{name}: {metric}", float(value.mean()), "a session"))
        error = float(values["return"].std() / np.sqrt(len(population)))
        found.append(Measurement(f"{name}: standard error of return", error, "a session"))
    return found


def _value(config: AgentConfig, shop: Storefront, population: Shoppers) -> Values:
    """The value of a ranker that looks at no item: it is told of an empty catalogue and of users without a past."""
    users, c = len(population), shop.config
    none = torch.zeros(1, 1)
    codes = torch.zeros(1, dtype=torch.int64)
    catalogue = Catalogue(none, none, codes, none[0], none[0], none, 1)
    task = Task(catalogue, c.rows, c.cols, 1, (0.0,) * 6, ("click",), none[0])
    lists = torch.zeros(users, 1, dtype=torch.int64)
    pages = torch.zeros(users, 1, c.slots, dtype=torch.int64)
    start = StateBatch(none.expand(users, 1), lists, lists, lists, lists, lists, pages, pages, lists[:, 0])
    vocabulary = torch.zeros(c.n_items, dtype=torch.int64)
    agent = config.build(task, SEED)
    return true_value(agent, config, task, shop, population, start, torch.arange(users), vocabulary, SEED)


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    """The result and the CPU seconds of this process: wall time would measure who else is on the machine."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


if __name__ == "__main__":
    main()
