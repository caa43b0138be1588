"""How many pages a second the fitted user models answer in batches: the part of ``benchmarks.simulators`` that needs
no log. Networks have their default sizes and are not trained; that changes no time.

In a batch, a user-step has all that belongs to a roll-out: candidates recalled, a page, its answers, the next state
and who leaves. One user at a time, it is the user model alone, on pages that were drawn before: the leanest loop over
the same network.

Users answer 15 % of the items positively, as in a log, on both sides; untrained networks alone would give a half.

What bounds them, a user-step being ten slots, on a core of the EPYC where this was written, which does 210 GFLOP/s:

- ``rnn`` needs 7.0 million floating-point operations, 33 of the 62 µs that it takes: with nothing but them it would
  make 30,000 a second, 35 times as many as one user at a time (1,168 µs).
- ``attention`` takes 23 µs, ``feedback``, which is two GRUs over ten items each, 19.

Candidates take 5 µs of them, whatever the model.
Before the first step ``similar`` recall compares all items with each other, once; that is quadratic and not measured.
"""

import argparse
import math
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from benchmarks.common import Measurement, alone
from models import SIMULATORS
from models.base import Catalogue, StateBatch, Task
from models.environments.recall import RECALLS
from models.environments.sessions import Sessions, SessionSettings
from models.simulators.base import FittedUserModel
from pipeline.schemas import COUNTERS
from pipeline.simulation import simulator_config

SEED = 7
ITEMS, MANY_ITEMS = 2_000, 20_000
EMBEDDING, USER_WIDTH, HISTORY = 50, 8, 10
ROWS, COLS, POOL, PAGES = 5, 2, 50, 10
POSITIVE = 0.15  # share of positive answers: untrained networks would give a half
ALONE = 20  # users of the loop over single ones


def fitted(name: str) -> Callable[[argparse.Namespace], list[Measurement]]:
    """The case of one user model."""

    def case(options: argparse.Namespace) -> list[Measurement]:
        users = min(options.users, 1_000)
        runs = [
            (
                alone(steps_alone, name, ALONE).result,
                alone(steps_together, name, ITEMS, users).result,
                alone(steps_together, name, MANY_ITEMS, users).result,
            )
            for _ in range(options.repeat)
        ]
        single, together, many = (median(run[side] for run in runs) for side in range(3))
        ratio = median(run[1] / run[0] for run in runs)
        growth = median(run[1] / run[2] for run in runs)
        what = f"{name}, {users:,} users at once"
        found = [
            Measurement(f"{what}, against one at a time", together, "user-steps / CPU s", single, ratio),
            Measurement(
                f"{what}: a step among {MANY_ITEMS:,} items, against {ITEMS:,}", 1 / many, "CPU s", 1 / together, growth
            ),
        ]
        if torch.cuda.is_available():
            rate = steps_together(name, ITEMS, users, "cuda")
            found.append(Measurement(f"{what} on a GPU, against one on a core", rate, "user-steps / s", single,
                                     rate / single))  # fmt: skip
        return found

    return case


def steps_alone(name: str, users: int) -> float:
    """User-steps a CPU second of whole sessions of single users, one after the other."""
    torch.set_num_threads(1)
    task = make_task(ITEMS)
    model = make_model(name, task)
    starts = [make_state(task, 1, seed) for seed in range(users)]
    random = torch.Generator().manual_seed(SEED)
    pages = torch.randint(1, ITEMS + 1, (users, PAGES, 1, task.page_size), generator=random)
    draws = torch.rand(users, PAGES, 1, model.step_width(task.page_size), generator=random)
    play_alone(model, starts[0], pages[0], draws[0])
    before = time.process_time()
    for start, page, draw in zip(starts, pages, draws, strict=True):
        play_alone(model, start, page, draw)
    return users * PAGES / (time.process_time() - before)


@torch.inference_mode()
def play_alone(model: FittedUserModel, start: StateBatch, pages: Tensor, draws: Tensor) -> None:
    hidden = model.reset(start)
    for page, draw in zip(pages, draws, strict=True):
        _, _, hidden = model.step(hidden, page, draw)


def steps_together(name: str, items: int, users: int, device: str = "cpu") -> float:
    """User-steps a CPU second (on a GPU: a second) of ``users`` sessions at once, recall and states included."""
    torch.set_num_threads(1)
    task = make_task(items, device)
    shape = SessionSettings(rows=ROWS, cols=COLS, pool=POOL, length="short")
    engine = Sessions(make_model(name, task), task, RECALLS["similar"](task), shape)
    clock = time.process_time if device == "cpu" else time.perf_counter
    chosen = torch.arange(task.page_size, device=device).expand(users, -1)
    seconds = 0.0
    for seed in (SEED, SEED + 1):  # the first to warm up
        engine.start(make_state(task, users, seed), torch.arange(users), seed)
        before = clock()
        while not engine.done:
            engine.step(chosen)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = clock() - before
    return users * PAGES / seconds


def make_model(name: str, task: Task) -> FittedUserModel:
    torch.manual_seed(SEED)
    model = simulator_config(name, {}).build(task)
    model.load_state_dict(model.new_network().state_dict())
    model.calibration = {"click": torch.tensor([0.0, math.log(POSITIVE / (1 - POSITIVE))], device=task.device)}
    return model


def make_task(items: int, device: str = "cpu") -> Task:
    random = torch.Generator().manual_seed(SEED)
    embeddings = torch.randn(items + 1, EMBEDDING, generator=random)
    embeddings[0] = 0
    counts = torch.randint(1, 500, (items + 1,), generator=random).float()
    category = torch.randint(1, 12, (items + 1,), generator=random)
    none, counters = torch.zeros(items + 1, 0), torch.zeros(items + 1, len(COUNTERS))
    return Task(
        catalogue=Catalogue(embeddings, none, category, counts, 10 * counts, counters, 12),
        rows=ROWS,
        cols=COLS,
        user_width=USER_WIDTH,
        rewards=(0.0, 0.0, 1.0, 1.0, 1.0, 5.0),
        measurement_names=(),
        measurement_scale=torch.ones(0),
        device=device,
    )


def make_state(task: Task, users: int, seed: int) -> StateBatch:
    random = torch.Generator().manual_seed(seed)
    items = torch.randint(1, ITEMS + 1, (users, HISTORY), generator=random)
    features = torch.randn(users, USER_WIDTH, generator=random)
    state = StateBatch.at_start(features, items, torch.full_like(items, 2), pages=5, page_size=task.page_size)
    return state.to(task.device)


CASES = {name: fitted(name) for name in SIMULATORS}
