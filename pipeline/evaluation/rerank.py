"""Leg 1: an agent re-ranks the logged impressions of a session.

``oneshot``: one ranking from the state at the session's start (MaHRL, section 4.2.2). A page-wise agent composes page
after page of what is left while its state stays frozen.
``paged``: choose a page from what is left, see its logged feedback, update the state, go on (DeepPage, algorithm 4).
An item-wise agent shows its best page.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.base import Agent, AgentConfig, Candidates, PagewiseAgent, StateBatch, Task, rank, rank_page
from models.feedback import FIRST_POSITIVE
from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.evaluation.metrics import Floats, rank_metrics
from pipeline.evaluation.sessions import CandidateSessions
from pipeline.schemas import RERANK_METRICS, SCHEMAS

Mode = Literal["oneshot", "paged"]
MODES: tuple[Mode, ...] = ("oneshot", "paged")
STATUS = pa.array(["scored", "no_positive", "all_positive"])
PAIRS = 1 << 16  # of sessions and candidates that an agent scores at once: bounds its memory


@dataclass(frozen=True)
class Ranked:
    """The candidates of S sessions from best to worst, padding last."""

    mode: Mode
    order: Tensor  # [S, L] int64, indices into the session's candidates
    scores: Tensor  # [S, L] float32 in that order; the negative rank where the agent ranked by pages


def rerank(agent: Agent, config: AgentConfig, task: Task, sessions: CandidateSessions, mode: Mode) -> Ranked:
    """Rank the candidates of every session.

    Labels and logged positions reach the agent only if its config declares the privilege. Raises ConfigError for an
    agent that cannot be re-ranked, ModelError for pages or scores that are no ranking.
    """
    if "rerank" not in config.legs or "truth" in config.privileges:
        raise ConfigError(f"{type(config).__name__} cannot re-rank a log: its legs are {sorted(config.legs)}.")
    if mode not in MODES:
        raise ConfigError(f"There is no re-ranking mode {mode!r}; known are: {', '.join(MODES)}.")
    pagewise = isinstance(agent, PagewiseAgent)
    ranker = agent if pagewise else _Checked(agent)
    width = sessions.items.shape[1]
    order = torch.arange(width).repeat(len(sessions), 1)
    scores = -1.0 - order
    with torch.no_grad():
        step = max(1, PAIRS // max(1, width))
        for start in range(0, len(sessions), step):
            rows = slice(start, start + step)
            part = sessions[rows].trimmed().to(task.device)
            candidates = _candidates(part, config)
            columns = slice(part.items.shape[1])
            if mode == "paged" or pagewise:
                order[rows, columns] = _by_pages(ranker, task, part, candidates, reveal=mode == "paged")
            else:
                found = ranker.score(part.state, candidates)
                best = rank(found, candidates)
                order[rows, columns], scores[rows, columns] = best.cpu(), found.gather(1, best).float().cpu()
    return Ranked(mode, order, scores)


def ranking_table(sessions: CandidateSessions, ranked: Ranked, agent: str, seed: int) -> pa.Table:
    """The rows of ``rankings``: one a candidate, best first within its session."""
    real = sessions.mask.gather(1, ranked.order)
    ranks = torch.arange(1, real.shape[1] + 1).expand_as(real)

    def ranked_values(values: Tensor) -> NDArray[Any]:
        return values.gather(1, ranked.order)[real].numpy()

    return _table(
        "rankings",
        session_id=sessions.session_id.repeat_interleave(sessions.lengths).numpy(),
        agent=agent,
        seed=seed,
        mode=ranked.mode,
        item_key=ranked_values(sessions.item_keys),
        rank=ranks[real].numpy(),
        score=ranked.scores[real].numpy(),
        feedback=ranked_values(sessions.feedback),
        reward=ranked_values(sessions.rewards),
    )


def session_table(sessions: CandidateSessions, ranked: Ranked, agent: str, seed: int) -> pa.Table:
    """The rows of ``rerank``: one a session. Metrics are null where no order is better than another."""
    lengths, positives = sessions.lengths.numpy(), sessions.positives.numpy()
    status = np.where(positives == 0, 1, np.where(positives == lengths, 2, 0))
    unscored, metrics = status > 0, _metrics(sessions, ranked)
    return _table(
        "rerank",
        session_id=sessions.session_id.numpy(),
        user_key=sessions.user_key.numpy(),
        agent=agent,
        seed=seed,
        mode=ranked.mode,
        candidates=lengths,
        positives=positives,
        status=pa.DictionaryArray.from_arrays(status, STATUS).dictionary_decode(),
        **{name: pa.array(metrics[name], mask=unscored) for name in RERANK_METRICS},
    )


def scorable(sessions: CandidateSessions) -> CandidateSessions:
    """The ``scored`` ones of the validation sessions. Raises DataError when there is none."""
    sessions = sessions[sessions.scored]
    if not len(sessions):
        raise DataError(
            "No validation session has both positive and other feedback, so no ranking is better than another. "
            "Give the validation split a longer part of the log."
        )
    return sessions


def validation_scores(agent: Agent, config: AgentConfig, task: Task, sessions: CandidateSessions) -> Floats:
    """NDCG@20 with the rewards as gains, paged, of ``scorable`` sessions, [S]: early stopping maximises its mean."""
    return _metrics(sessions, rerank(agent, config, task, sessions, "paged"))["ndcg_reward_20"]


def _candidates(sessions: CandidateSessions, config: AgentConfig) -> Candidates:
    return Candidates(
        items=sessions.items,
        mask=sessions.mask,
        tie=sessions.tie,
        logged_position=sessions.positions if "logged_position" in config.privileges else None,
        rewards=sessions.rewards if "labels" in config.privileges else None,
        counters=sessions.counters,
    )


@dataclass(frozen=True)
class _Checked:
    """An item-wise agent whose scores are looked at: a NaN would sort somewhere, silently."""

    agent: Agent

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        scores = self.agent.score(state, candidates)  # [B, K]
        if scores.shape != candidates.items.shape or bool(scores[candidates.mask].isnan().any()):
            raise ModelError(
                f"{type(self.agent).__name__}.score must give a number for each of {tuple(candidates.items.shape)} "
                f"candidates; it gave {tuple(scores.shape)} with {int(scores.isnan().sum())} NaN. Did training diverge?"
            )
        return scores


def _by_pages(agent: Agent, task: Task, sessions: CandidateSessions, candidates: Candidates, reveal: bool) -> Tensor:
    """The order [S, L] in which pages show the candidates; ``reveal`` lets the state see what came of them."""
    state, (total, width) = sessions.state, sessions.items.shape
    rows = torch.arange(total, device=sessions.items.device)  # sessions that are not done, [B]
    order = torch.arange(width, device=rows.device).repeat(total, 1)
    left, mask = order, sessions.mask  # [B, W], what they have left, real candidates first
    for start in range(0, width, task.page_size):
        going = mask.any(dim=1)
        rows, state, left, mask = rows[going], state[going], left[going], mask[going]
        left, mask = _packed(left, mask)
        offered = _take(candidates[rows], left, mask)
        page = rank_page(agent, state, offered, task.rows, task.cols)  # [B, K]
        filled, picked = page >= 0, _picked(page, mask, task, agent)  # [B, K], [B, W]
        page = page.clamp(min=0)
        shown = left.gather(1, page)  # [B, K]
        slots = order[rows, start : start + task.page_size]  # [B, min(K, L - start)]
        # Empty slots keep the indices of the padding, which stand there from the beginning.
        end = slots.shape[1]
        order[rows, start : start + end] = torch.where(filled[:, :end], shown[:, :end], slots)
        if reveal:
            feedback = sessions.feedback[rows].gather(1, shown) * filled
            state = state.advance(offered.items.gather(1, page) * filled, feedback)
        mask = mask & ~picked
    return order.cpu()


def _packed(left: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The unmasked entries [B, W] to the left, in their order, at the least common width."""
    order = (~mask).int().argsort(dim=1, stable=True)[:, : int(mask.sum(dim=1).max())]
    return left.gather(1, order), mask.gather(1, order)


def _take(candidates: Candidates, index: Tensor, mask: Tensor) -> Candidates:
    """The candidates at ``index`` [B, W]."""
    position, rewards, counters = candidates.logged_position, candidates.rewards, candidates.counters
    return replace(
        candidates,
        items=candidates.items.gather(1, index),
        mask=mask,
        tie=candidates.tie.gather(1, index),
        logged_position=None if position is None else position.gather(1, index),
        rewards=None if rewards is None else rewards.gather(1, index),
        counters=None if counters is None else counters.gather(1, index[..., None].expand(-1, -1, counters.shape[2])),
    )


def _picked(page: Tensor, mask: Tensor, task: Task, agent: Agent) -> Tensor:
    """Which candidates [B, W] a page [B, K] shows. Raises ModelError unless it is full, or holds all that is left."""
    slots = torch.arange(task.page_size, device=page.device)
    wanted = slots < mask.sum(dim=1, keepdim=True)  # [B, K]
    sound = page.shape == wanted.shape and bool(((page >= 0) == wanted).all() and (page < mask.shape[1]).all())
    if sound:
        picks = torch.zeros_like(mask, dtype=torch.int64).scatter_add_(1, page.clamp(min=0), wanted.long())
        if bool((picks <= mask).all()):
            return picks > 0
    raise ModelError(
        f"{type(agent).__name__}.rank_page must fill [{len(mask)}, {task.page_size}] slots with distinct unmasked "
        f"candidates, and -1 only after the last of them; it gave {tuple(page.shape)}: {page[:1].tolist()} …"
    )


def _metrics(sessions: CandidateSessions, ranked: Ranked) -> dict[str, Floats]:
    relevant = (sessions.feedback >= FIRST_POSITIVE).gather(1, ranked.order)
    rewards = sessions.rewards.gather(1, ranked.order)
    return rank_metrics(rewards.numpy(), relevant.numpy(), sessions.lengths.numpy())


def _table(name: str, **columns: object) -> pa.Table:
    """A published table; a scalar is repeated in every row."""
    size = len(columns["session_id"])  # type: ignore[arg-type]
    arrays = [
        pa.repeat(pa.scalar(columns[field.name], field.type), size)
        if isinstance(columns[field.name], (str, int))
        else pa.array(columns[field.name]).cast(field.type)
        for field in SCHEMAS[name]
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMAS[name])
