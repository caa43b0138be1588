"""Leg 3: what each agent would have earned on the logged test pages, estimated from the log alone.

A ranker is smoothed into the Plackett-Luce policy with logits (score − mean) / (deviation · temperature) over a page's
candidates, so the value is that policy's, and not that of its best page, which has no overlap with a log. Of an agent
that composes pages the item scores are taken. Three settings, each with its own assumption:

    slot     one slot is the agent's, those above it are the log's: no assumption
    page     the page is the agent's, in the states that the log reached: what a slot's reward may depend on is the
             estimator's assumption (``ope/slates.py``)
    session  the whole session is the agent's: weights are products over pages (or a model's, FQE)

``gain`` is the value minus what the log itself earned on the same rows, with the interval of that difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from models.base import Agent, Candidates, Task
from pipeline.artifacts import load_agent
from pipeline.errors import DataError
from pipeline.evaluation.judged import Judged, read_decisions
from pipeline.evaluation.ope.diagnostics import overlaps
from pipeline.evaluation.ope.estimate import Estimator, Terms, difference, summarise
from pipeline.evaluation.ope.logged import Floats, Ints, LoggedSlates, LoggedSteps, LoggedTrajectories
from pipeline.evaluation.ope.policies import (
    conditional_propensities,
    depths,
    marginal_propensities,
    sample_slates,
    slot_distributions,
    smooth,
)
from pipeline.evaluation.ope.slates import IIPS, SLATE_ESTIMATORS
from pipeline.evaluation.ope.steps import IPS, STEP_ESTIMATORS
from pipeline.evaluation.ope.trajectories import FQE, PDIS, TRAJECTORY_ESTIMATORS
from pipeline.evaluation.run import AgentRun, agent_runs, seed_folders
from pipeline.schemas import SCHEMAS
from pipeline.task import TASK_TABLES, load_task
from pipeline.warehouse import write_parquet
from pipeline.workers import in_processes

if TYPE_CHECKING:
    from pipeline.plan import Job

FLOOR = 1e-3  # a chance in the log below which an action counts as not overlapping
DRAWN = 8  # pages that stand for the agent's in the regression of FQE
BY_SLOT = {"iips", "sn_iips"}  # estimators that need nothing but propensities of single slots
EMPTY = {
    **dict.fromkeys(("reward", "q_logged", "v_target"), 0.0),
    **dict.fromkeys(("behaviour", "target", "behaviour_marginal", "target_marginal"), 1.0),
}  # what stands in an empty slot
NO_PSEUDO_INVERSE = "not estimated: it needs, for each page, a matrix of all pairs of slots and candidates"
NO_CONDITIONALS = "the log has propensities of single slots, not of a slot given those above it"


@dataclass(frozen=True)
class Policy:
    """An agent as a policy on the logged pages: its chances of what was logged, and what a reward model expects."""

    conditional: Floats  # [n, K]
    marginal: Floats  # [n, K]
    first_slot: Floats  # [n, R]
    q_logged: Floats  # [n, K] of the logged item
    v_target: Floats  # [n, K] of the agent's choice for the slot, the slots above being logged
    page_reward: Floats  # [n] what the reward model expects of the agent's page


def estimate_agents(job: Job) -> None:
    """Leg 3 of the job's agents: ``ope`` and, beside it, ``ope_pages``."""
    runs = agent_runs(job, ("ope",), ("decisions", *TASK_TABLES))
    in_processes(_estimate_agent, runs, job.experiment.device)


def _estimate_agent(run: AgentRun) -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1):  # of BLAS: there is a process for each core
        _write_estimates(run)


def _write_estimates(run: AgentRun) -> None:
    task = load_task(run.inputs, run.experiment)
    judged = read_decisions(run.inputs["decisions"], task)
    rows: list[dict[str, Any]] = []
    pages: list[pa.RecordBatch] = []
    if judged is not None:
        for seed, policy in _policies(run, task, judged):
            slates = logged_slates(judged, policy)
            labels = {"agent": run.name, "seed": seed}
            shared = overlaps(policy.first_slot, judged.behaviour.first_slot, FLOOR)
            common = {
                "temperature": run.experiment.ope.temperature,
                "propensities": judged.behaviour.kind,
                "pool": judged.pool,
                "overlap": float(shared.mean()),
            }
            rows += [labels | common | row for row in estimates(judged, policy, slates)]
            of_page = {"fqe_weight": fqe_weights(judged, policy, slates), "overlap": shared}
            pages += _page_rows(judged, slates, labels, of_page)
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["ope"])
    write_parquet(run.outs["ope"], "ope", table.to_batches())
    write_parquet(run.outs["ope"].with_name("ope_pages.parquet"), "ope_pages", pages)


def _policies(run: AgentRun, task: Task, judged: Judged) -> Iterator[tuple[int, Policy]]:
    """Every seed of an agent as a policy; the ranker that made the log is its own."""
    if run.folder is None:
        yield run.experiment.seeds[0], logging_policy(judged)
    for folder in seed_folders(run):
        agent, config, seed = load_agent(folder, task)
        if config.privileges or "rerank" not in config.legs:
            continue
        logits = smooth(_scores(agent, judged, task), judged.decisions.mask.numpy(), run.experiment.ope.temperature)
        yield seed, agent_policy(judged, logits, seed)


@torch.no_grad()
def _scores(agent: Agent, judged: Judged, task: Task) -> Floats:
    decisions = judged.decisions.to(task.device)
    candidates = Candidates(decisions.items, decisions.mask, decisions.tie, counters=decisions.counters)
    scores: Floats = agent.score(decisions.state, candidates).cpu().double().numpy()
    return scores


def logging_policy(judged: Judged) -> Policy:
    """The policy that made the log; with a reward model that says 0, every estimator is the log's own mean."""
    behaviour, nothing = judged.behaviour, np.zeros_like(judged.behaviour.conditional)
    expected = _of_slots(judged, judged.decisions.slate.numpy()).sum(axis=1)
    return Policy(behaviour.conditional, behaviour.marginal, behaviour.first_slot, nothing, nothing, expected)


def agent_policy(judged: Judged, logits: Floats, seed: int) -> Policy:
    """The policy that draws pages from ``logits`` [n, R] without replacement."""
    slate = judged.decisions.slate.numpy()
    z, rng = depths(slate.shape[1]), np.random.default_rng(seed)
    chances = slot_distributions(logits, slate)  # [n, K, R]
    level, trend = (np.einsum("nkr,nr->nk", chances, part) for part in (judged.level, judged.trend))
    drawn = [_of_slots(judged, sample_slates(logits, slate.shape[1], rng)).sum(axis=1) for _ in range(DRAWN)]
    return Policy(
        conditional=conditional_propensities(logits, slate),
        marginal=marginal_propensities(logits, slate),
        first_slot=np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)),
        q_logged=_of_slots(judged, slate),
        v_target=np.where(slate >= 0, level + z * trend, 0.0),
        page_reward=np.mean(drawn, axis=0),
    )


def _of_slots(judged: Judged, slates: Any) -> Floats:
    """What the reward model expects of each slot of ``slates`` [n, K]; 0 in empty ones."""
    chosen = np.maximum(slates, 0)
    level, trend = (np.take_along_axis(part, chosen, axis=1) for part in (judged.level, judged.trend))
    return np.where(slates >= 0, level + depths(slates.shape[1]) * trend, 0.0)


def logged_slates(judged: Judged, policy: Policy) -> LoggedSlates:
    """The logged pages beside the propensities of both policies."""
    decisions = judged.decisions
    return LoggedSlates(
        reward=decisions.rewards.double().numpy(),
        behaviour=judged.behaviour.conditional,
        target=policy.conditional,
        mask=(decisions.slate >= 0).numpy(),
        user_key=decisions.user_key.numpy(),
        behaviour_marginal=judged.behaviour.marginal,
        target_marginal=policy.marginal,
        q_logged=policy.q_logged,
        v_target=policy.v_target,
    )


def estimates(judged: Judged, policy: Policy, slates: LoggedSlates) -> Iterator[dict[str, Any]]:
    """Every estimator's row in every setting."""
    by_slot = judged.behaviour.kind == "logged by slot"
    steps = logged_steps(slates, by_slot)
    on_policy = replace(steps, target=steps.behaviour)
    for name, step_estimator in STEP_ESTIMATORS.items():
        yield {"setting": "slot", "estimator": name} | _row(step_estimator, steps, IPS().terms(on_policy))
    mean = IIPS().terms(replace(slates, target_marginal=slates.behaviour_marginal))
    for name, page_estimator in SLATE_ESTIMATORS.items():
        label = {"setting": "page", "estimator": name}
        if name.endswith("pseudo_inverse"):
            yield label | _refused(NO_PSEUDO_INVERSE, len(slates))
        elif by_slot and name not in BY_SLOT:
            yield label | _refused(NO_CONDITIONALS, len(slates))
        else:
            yield label | _row(page_estimator, slates, mean)
    if by_slot:
        yield from ({"setting": "session", "estimator": name} | _refused(NO_CONDITIONALS, len(slates))
                    for name in TRAJECTORY_ESTIMATORS)  # fmt: skip
        return
    sessions = logged_sessions(judged, policy, slates)
    mean = PDIS().terms(replace(sessions, target=sessions.behaviour))
    for name, estimator in TRAJECTORY_ESTIMATORS.items():
        yield {"setting": "session", "estimator": name} | _row(estimator, sessions, mean)


def logged_steps(slates: LoggedSlates, marginal: bool) -> LoggedSteps:
    """Every slot as a decision of its own."""
    mask = slates.mask
    behaviour, target = slates.behaviour, slates.target
    if marginal and slates.behaviour_marginal is not None and slates.target_marginal is not None:
        behaviour, target = slates.behaviour_marginal, slates.target_marginal
    q_logged, v_target = (None if part is None else part[mask] for part in (slates.q_logged, slates.v_target))
    users = np.broadcast_to(slates.user_key[:, None], mask.shape)[mask]
    return LoggedSteps(slates.reward[mask], behaviour[mask], target[mask], users, q_logged, v_target)


def logged_sessions(judged: Judged, policy: Policy, slates: LoggedSlates) -> LoggedTrajectories:
    """Whole sessions of pages; one of which a page is not known is left out.

    The regression of FQE sees state × (1, what the reward model expects of the page); the state is the page's number,
    the positives of the page before and of the history.
    """
    decisions = judged.decisions
    session, step = decisions.session_id.numpy(), decisions.step.numpy()
    rows = _of_whole_sessions(session, step)
    state = decisions.state
    known = np.stack(
        [
            np.ones(len(step)),
            np.log1p(step),
            (state.page_feedback[:, -1] > 1).float().mean(dim=1).numpy(),
            np.log1p((state.history_feedback > 0).sum(dim=1).numpy()),
        ],
        axis=1,
    )  # [n, 4]
    logged = _of_slots(judged, decisions.slate.numpy()).sum(axis=1)
    q = slates.q_logged, slates.v_target
    q_page, v_page = (None if part is None else part.sum(axis=1)[rows] for part in q)
    return LoggedTrajectories(
        session_id=session[rows],
        step=step[rows],
        reward=slates.reward.sum(axis=1)[rows],
        behaviour=slates.behaviour.prod(axis=1)[rows],
        target=slates.target.prod(axis=1)[rows],
        user_key=slates.user_key[rows],
        q_logged=q_page,
        v_target=v_page,
        features=np.hstack([known, known * logged[:, None]])[rows],
        target_features=np.hstack([known, known * policy.page_reward[:, None]])[rows],
    )


def _of_whole_sessions(session: Ints, step: Ints) -> Ints:
    """The places of the pages of sessions of which all pages are known, in order."""
    labels, index = np.unique(session, return_inverse=True)
    last = np.zeros(len(labels), dtype=np.int64)
    np.maximum.at(last, index, step)
    rows = np.flatnonzero((np.bincount(index) == last + 1)[index])
    return rows[np.lexsort((step[rows], session[rows]))]


def fqe_weights(judged: Judged, policy: Policy, slates: LoggedSlates) -> Floats:
    """w of each page, [n]: FQE's estimate is the sum of w times the page's reward over the number of sessions.

    NaN where FQE estimates nothing from a page.
    """
    decisions, weights = judged.decisions, np.full(len(slates), np.nan)
    if judged.behaviour.kind != "logged by slot":
        with suppress(DataError):  # refused, as its estimate says
            found = FQE().terms(logged_sessions(judged, policy, slates)).weight[:, 0]
            weights[_of_whole_sessions(decisions.session_id.numpy(), decisions.step.numpy())] = found
    return weights


def _row(estimator: Estimator[Any], logged: Any, mean: Terms) -> dict[str, Any]:
    """An estimate with its diagnostics and its gain over the log's own ``mean``."""
    try:
        terms = estimator.terms(logged)
    except DataError as error:
        return _refused(str(error), len(logged))
    found = summarise(terms, estimator.support)
    gain, low, high = difference(terms, mean)
    return {
        "value": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "n": found.n,
        "users": len(np.unique(terms.user_key)),
        "ess": found.ess,
        "tail_index": found.tail_index,
        "max_weight": found.max_weight,
        "mean_weight": found.mean_weight if terms.unit_mean else None,
        "mean_weight_error": found.mean_weight_error if terms.unit_mean else None,
        "clipped_share": found.clipped_share,
        "supported": found.supported,
        "reason": found.reason,
    }


def _refused(reason: str, n: int) -> dict[str, Any]:
    return {"n": n, "supported": False, "reason": reason}


def _page_rows(
    judged: Judged, slates: LoggedSlates, labels: Mapping[str, Any], of_page: Mapping[str, Floats]
) -> list[pa.RecordBatch]:
    decisions, n = judged.decisions, len(slates)
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * slates.reward.shape[1])
    values = {name: np.where(slates.mask, getattr(slates, name), EMPTY[name]) for name in EMPTY}
    lists = values | {"filled": slates.mask}
    columns = {
        **{name: pa.array([value] * n) for name, value in labels.items()},
        **{name: pa.array(getattr(decisions, name).numpy()) for name in ("session_id", "user_key", "step")},
        **{name: pa.ListArray.from_arrays(offsets, pa.array(part.ravel())) for name, part in lists.items()},
        **{name: pa.array(part, mask=np.isnan(part)) for name, part in of_page.items()},
    }
    return list(pa.table(columns).to_batches())
