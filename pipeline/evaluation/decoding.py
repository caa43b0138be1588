"""Does this data need RL at all? Three decoders of one user model, which knows its own answers, earn in it.

    greedy     the items with the highest P(positive) each: what a ranker by clicks alone would show
    best_page  the best of C pages by the reward of the page itself, its mean over M simulated answers
    lookahead  the best of C pages by the reward up to the session's end, its mean over M simulated sessions

The C pages are the greedy one and Plackett-Luce samples around it; both searches choose in the same way, so
``lookahead`` gains over ``best_page`` by foresight alone. After a searched page the simulated session goes on greedily,
which makes ``lookahead`` a rollout policy (Bertsekas and Castañon, Journal of Heuristics 1999). RL4RS (Wang et al.,
SIGIR 2023) asks the same with a beam search: there a greedy decoder reaches 0.99 of the best return on MovieLens.

All decoders meet the luck of leg 2; simulated futures, the pools of later pages with them, are drawn with other luck.

Shapes: A users who are still there, C pages each, M futures of a page, R candidates, K slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor

from models.base import Candidates, StateBatch, Task, rank_page
from models.environments.recall import RECALLS
from models.environments.sessions import Sessions, SessionSettings
from models.hashing import mix64
from pipeline.evaluation.run import AgentRun, agent_runs, next_session
from pipeline.plan import PRODUCTION
from pipeline.schemas import SCHEMAS
from pipeline.simulation import Simulator, failed_criteria, load_simulator
from pipeline.task import TASK_TABLES, load_task
from pipeline.warehouse import write_parquet
from pipeline.workers import in_processes

if TYPE_CHECKING:
    from pipeline.experiment import Rollouts
    from pipeline.plan import Job

USERS = 400  # at most
CROWD = 100  # of them at a time: bounds the memory, changes no number
PAGES = 8  # C
FUTURES = 8  # M
HORIZON = 10  # pages that a simulated future has at most, the searched one included
NEAREST, FARTHEST = 0.1, 0.5  # temperatures of the samples, in units of the logits' deviation
FUTURE, SAMPLE = -1, 4  # purposes of luck beside those of sessions.py; a page number is never negative

Decoder = Callable[[Sessions, Sessions], Tensor]  # of the sessions and others to plan in: the next page [A, K]


@dataclass(frozen=True)
class Crowd:
    """Some users to decode for in one user model: what a worker process needs."""

    run: AgentRun
    judge: str
    rows: slice  # of the users of leg 2


def decode(job: Job) -> None:
    """Write ``decoding``: a row a user and decoder in each judge that passed its gate; none where all failed."""
    experiment, failed = job.experiment, failed_criteria(job.files("simulator_gate"))
    judges = [name for name in experiment.simulators.judge if not failed[name]]
    (run,) = agent_runs(job, (), ("impressions", "sessions", *TASK_TABLES), [PRODUCTION])  # no trained agent decodes
    users = min(USERS, experiment.budgets().rollout_users)
    crowds = [Crowd(run, name, slice(at, min(at + CROWD, users))) for name in judges for at in range(0, users, CROWD)]
    found = in_processes(_decode, crowds, experiment.device)
    write_parquet(job.out("decoding"), "decoding", chain.from_iterable(found))


def _decode(crowd: Crowd) -> list[pa.RecordBatch]:
    torch.set_num_threads(1)
    experiment = crowd.run.experiment
    task = load_task(crowd.run.inputs, experiment)
    users, start = next_session(crowd.run, task)
    users, start = users[crowd.rows], start[crowd.rows]
    simulator = load_simulator(crowd.run.store, crowd.judge, experiment, task)
    batches = []
    for decoder, search in DECODERS.items() if len(users) else ():
        found = play(search, task, simulator, experiment.rollouts, start, users, experiment.seeds[0])
        labels = {"setting": f"{simulator.side}/{crowd.judge}/natural", "decoder": decoder}
        columns: dict[str, Any] = {key: [value] * len(users) for key, value in labels.items()}
        columns |= {"user_key": users.numpy(), **{key: values.numpy() for key, values in found.items()}}
        batches.append(pa.RecordBatch.from_pydict(columns, schema=SCHEMAS["decoding"]))
    return batches


@torch.no_grad()
def play(
    decoder: Decoder, task: Task, simulator: Simulator, settings: Rollouts, start: StateBatch, users: Tensor, seed: int
) -> dict[str, Tensor]:
    """The return and the depth [U] of one natural session of each user ``users`` [U] (int64 keys)."""
    recall = RECALLS[settings.recall](task)
    shape = SessionSettings(rows=task.rows, cols=task.cols, pool=settings.pool)
    sessions, futures = (Sessions(simulator.model, task, recall, shape) for _ in range(2))
    sessions.start(start, users, seed)
    returns, depth = torch.zeros(2, len(users), dtype=torch.float64, device=task.device)
    while not sessions.done:
        outcome = sessions.step(decoder(sessions, futures))
        returns[outcome.users] += outcome.rewards
        depth[outcome.users] += 1
    return {"return": returns.cpu(), "depth": depth.cpu()}


class _Knowing:
    """A ranker by the P(positive) of the user model in which the session runs."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        return self.sessions.model.positive_probabilities(self.sessions.hidden, candidates.items)


def greedy(sessions: Sessions, futures: Sessions) -> Tensor:
    """The page of the most probable items."""
    task = sessions.task
    return rank_page(_Knowing(sessions), sessions.state, sessions.candidates, task.rows, task.cols)


def best_page(sessions: Sessions, futures: Sessions) -> Tensor:
    """The page that earns most by itself."""
    return _searched(sessions, futures, horizon=1)


def lookahead(sessions: Sessions, futures: Sessions) -> Tensor:
    """The page that earns most with what comes after it."""
    return _searched(sessions, futures, HORIZON)


DECODERS: dict[str, Decoder] = {"greedy": greedy, "best_page": best_page, "lookahead": lookahead}


def _searched(sessions: Sessions, futures: Sessions, horizon: int) -> Tensor:
    pages = candidate_pages(sessions)  # [A, C, K]
    returns = _returns(sessions, futures, pages, horizon)  # [A, C, M]
    gains = returns - returns[:, :1]  # over the greedy page, in the same futures
    # The largest of C noisy means is not the best page, so a page must lead by more than the error of its lead.
    certain = gains.mean(dim=2) - gains.std(dim=2) / FUTURES**0.5  # [A, C], 0 for the greedy page
    return pages[torch.arange(len(pages), device=pages.device), certain.argmax(dim=1)]


def candidate_pages(sessions: Sessions) -> Tensor:
    """The greedy page and C − 1 samples around it as indices into the candidates, [A, C, K]; −1 in empty slots."""
    page, mask = greedy(sessions, sessions), sessions.candidates.mask  # [A, K], [A, R]
    logits = _Knowing(sessions).score(sessions.state, sessions.candidates).logit(eps=1e-6)  # [A, R]
    deviation = logits.std(dim=1, keepdim=True).clamp(min=1e-6)
    width = (PAGES - 1) * logits.shape[1]
    draws = sessions.running.draws(SAMPLE, width).view(len(logits), PAGES - 1, -1).double()  # [A, C-1, R]
    gumbels = -(-(draws + 2**-25).log()).log()
    temperatures = NEAREST * (FARTHEST / NEAREST) ** torch.linspace(0, 1, PAGES - 1, device=logits.device)
    # Adding Gumbel noise and sorting is sampling without replacement from a softmax (Yellott 1977).
    noisy = (logits / deviation)[:, None] + temperatures[:, None] * gumbels  # [A, C-1, R]
    best = noisy.masked_fill(~mask[:, None], -torch.inf).topk(min(page.shape[1], mask.shape[1]), dim=2)
    sampled = torch.where(best.values.isfinite(), best.indices, -1)
    sampled = torch.nn.functional.pad(sampled, (0, page.shape[1] - sampled.shape[2]), value=-1)
    return torch.cat([page[:, None], sampled], dim=1)


def _returns(sessions: Sessions, futures: Sessions, pages: Tensor, horizon: int) -> Tensor:
    """The reward [A, C, M] of each of ``pages`` [A, C, K] and of the greedy ones after it, up to ``horizon`` pages."""
    users, n_pages, _ = pages.shape
    rows = torch.arange(users, device=pages.device).repeat_interleave(n_pages * FUTURES)  # [A·C·M]
    future = torch.arange(FUTURES, device=pages.device).repeat(users * n_pages)  # the same luck for every page
    now = sessions.running[rows]
    luck = mix64(mix64(now.luck, torch.full_like(now.luck, FUTURE)), future)
    futures.running = replace(now, users=torch.arange(len(rows), device=pages.device), luck=luck)
    futures.candidates = sessions.candidates[rows]
    totals = torch.zeros(len(rows), dtype=torch.float64, device=pages.device)
    chosen = pages.flatten(0, 1).repeat_interleave(FUTURES, dim=0)  # [A·C·M, K]
    for _ in range(horizon):
        outcome = futures.step(chosen)
        totals[outcome.users] += outcome.rewards
        if futures.done:
            break
        chosen = greedy(futures, sessions)
    return totals.view(users, n_pages, FUTURES)
