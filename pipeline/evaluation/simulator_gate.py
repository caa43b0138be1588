"""The gate: what a user model must show on future sessions before it may judge rankers.

Its answers, given all that a logged user was shown and did, must beat two trivial predictions and be calibrated, also
among rarely shown items; its own sessions (``twins.py``) must be as long, and as often positive, as the logged ones.

    calibration     ECE <= what labels drawn from the predictions show (95 % point) + tolerance · positive rate
    exits           log-loss not significantly above that of the base rate (one-sided, 95 %, clustered by session)
    session length  max_t |S_logged(t) − S_simulated(t)|, S(t) = P(more than t pages) by Kaplan and Meier
    positive rate   |mean simulated / mean logged − 1|, over the pages that a user and his simulated twin both saw

Shapes: S sessions, n shown items, I items, G groups, M models, B users, K slots.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp, wasserstein_distance
from torch import Tensor

from models.base import Catalogue
from models.feedback import FIRST_POSITIVE
from models.simulators.base import EMPTY, SessionBatch, exit_labels
from models.simulators.metrics import (
    auc_interval,
    binary_metrics,
    calibration_by_group,
    quantile_bins,
    reliability,
    survival,
)
from pipeline.errors import ModelError
from pipeline.evaluation.gate_rows import answer_rows, twin_rows
from pipeline.evaluation.twins import Flags, Floats, JudgedModel, Twins, simulate_twins
from pipeline.experiment import Gate
from pipeline.schemas import empty

ONE_SIDED = 1.645  # standard errors: the 95 % point of a one-sided test
MEMBERS = 3  # of an ensemble, at least: fewer say little about where it disagrees


@dataclass(frozen=True)
class Baselines:
    """What the fit window says without a model."""

    positive_rate: float
    exit_rate: float  # a page
    item_rates: Tensor  # [I+1] float64, each item's positive rate, shrunk to the base rate; item 0 has the base rate
    impressions: Tensor  # [I+1] int64

    @classmethod
    def fit(cls, sessions: SessionBatch, catalogue: Catalogue) -> Self:
        """An item's rate is the posterior mean under a Beta prior that is fitted to all items (empirical Bayes)."""
        ends, leaves = exit_labels(sessions)
        shown = sessions.feedback > 0
        positive = sessions.feedback >= FIRST_POSITIVE
        impressions = torch.bincount(sessions.items[shown], minlength=len(catalogue))
        positives = torch.bincount(sessions.items[positive], minlength=len(catalogue))
        base = float(positives.sum() / impressions.sum())
        rates = _shrunken_rates(positives.double(), impressions.double(), base)
        return cls(base, float(leaves.sum() / ends.sum()), rates, impressions)

    def of_shown(self, sessions: SessionBatch) -> Floats:
        """The rate of each shown item, [n]."""
        rates: Floats = self.item_rates.cpu().numpy()[sessions.items[sessions.feedback > 0].numpy()]
        return rates


@dataclass(frozen=True)
class GateReport:
    """The verdict, a row a criterion, the points of the reliability plots, and the rows that all of it rests on."""

    rows: list[dict[str, Any]]  # simulator, head, criterion, value, reference, passed (None: reported only), n
    reliability: list[dict[str, Any]]  # simulator, head, group (all, or a decile), bin, predicted, observed, count
    passed: bool
    reasons: list[str]  # a sentence for each criterion that is not met
    answers: pa.Table  # simulator_answers
    twins: pa.Table  # simulator_twins


@dataclass(frozen=True)
class _Finding:
    head: str  # click, exit or session
    criterion: str
    value: float | None
    n: int  # shown items, pages or sessions
    reference: float | None = None
    passed: bool | None = None
    sentence: str = ""  # said where it is not passed


NO_EXIT = _Finding("exit", "log_loss_vs_base_rate", None, 0)  # a model whose users leave by a rule of their own


def judge(
    name: str,
    model: JudgedModel,
    members: Sequence[JudgedModel],
    sessions: SessionBatch,
    baselines: Baselines,
    settings: Gate,
    seed: int = 0,
) -> GateReport:
    """Hold ``model`` against the gate on logged ``sessions`` that are later than all it was fitted on.

    ``members`` is the ensemble, ``model`` among them; its disagreement is reported. The same seed gives the same
    report. Raises ModelError for fewer than 3 members, DataError for sessions with gaps.
    """
    if len(members) < MEMBERS:
        raise ModelError(f"The ensemble of {name} has {len(members)} members; its disagreement needs {MEMBERS}. "
                         "Fit it with more seeds.")  # fmt: skip
    small = _too_small(sessions, settings)
    if small is not None:
        return _report(name, [small], [], empty("simulator_answers"), empty("simulator_twins"))
    sessions = sessions.to("cpu")
    predicted = model.predict(sessions)
    clicks, exits = predicted["click"], predicted.get("exit")
    if len(clicks[0]) != (shown := int((sessions.feedback > 0).sum())):
        raise ModelError(
            f"{name} predicts {len(clicks[0])} clicks for {shown} shown items. Let predict() give one each."
        )
    ensemble = np.stack(
        [(predicted if member is model else member.predict(sessions))["click"][1] for member in members]
    )
    groups = _popularity_groups(sessions, baselines, settings.deciles)
    twins = simulate_twins(model, sessions, seed)
    findings = [
        *_click_findings(*clicks, groups, sessions, baselines, settings, seed),
        _Finding("click", "disagreement", _relative_spread(ensemble), len(clicks[0])),
        *(_exit_findings(*exits, sessions, baselines, seed) if exits else [NO_EXIT]),
        *_length_findings(twins, sessions, settings),
        *_rate_findings(twins, len(sessions), settings),
    ]
    plots = [("click", "all", *clicks), *((("exit", "all", *exits),) if exits else ())]
    plots += [("click", str(d), clicks[0][groups == d], clicks[1][groups == d]) for d in np.unique(groups)]
    bins = [bin for plot in plots for bin in _bins(*plot)]
    answers = [
        answer_rows(
            name,
            "click",
            sessions,
            sessions.feedback > 0,
            *clicks,
            group=groups.astype(str),
            base_rate=np.repeat(baselines.positive_rate, shown),
            popularity=baselines.of_shown(sessions),
            members_mean=ensemble.mean(axis=0),
            members_spread=ensemble.std(axis=0, ddof=1),
        )
    ]
    if exits:
        rates = np.repeat(baselines.exit_rate, len(exits[0]))
        answers.append(answer_rows(name, "exit", sessions, exit_labels(sessions)[0], *exits, base_rate=rates))
    return _report(name, findings, bins, pa.concat_tables(answers), twin_rows(name, twins, sessions))


def support(impressions: Tensor, items: Tensor, least: int) -> Tensor:
    """Whether the fit window showed each of ``items`` [B, K] ``least`` times, [B, K]; so counts an empty slot, too."""
    return (items == EMPTY) | (impressions[items.clamp(min=0)] >= least)


# ---- criteria


def _too_small(sessions: SessionBatch, settings: Gate) -> _Finding | None:
    """Why this window cannot judge anything, or None."""
    n, least = len(sessions), settings.min_sessions
    if n < least:
        sentence = f"The window has {n} sessions; a verdict needs {least}."
        return _Finding("session", "sessions", n, n, least, False, sentence)
    positives, shown = int((sessions.feedback >= FIRST_POSITIVE).sum()), int((sessions.feedback > 0).sum())
    if not 0 < positives < shown:
        sentence = f"The window has {positives} positive answers to {shown} shown items; a verdict needs both kinds."
        return _Finding("click", "positives", positives, shown, 1, False, sentence)
    return None


def _click_findings(
    labels: Flags,
    p: Floats,
    groups: NDArray[np.int64],
    sessions: SessionBatch,
    baselines: Baselines,
    settings: Gate,
    seed: int,
) -> list[_Finding]:
    own = binary_metrics(labels, p)
    rivals = {
        "base_rate": binary_metrics(labels, np.full_like(p, baselines.positive_rate)),
        "popularity": binary_metrics(labels, baselines.of_shown(sessions)),
    }
    findings = []
    for score, words in (("log_loss", "log-loss"), ("brier", "Brier score")):
        for rival, metrics in rivals.items():
            value, limit = own[score], metrics[score]
            sentence = (
                f"The {words} of clicks, {value:.4f}, is not below the {limit:.4f} of the {rival.replace('_', ' ')}."
            )
            findings.append(_Finding("click", f"{score}_vs_{rival}", value, len(p), limit, value < limit, sentence))
    findings += _calibration_findings(labels, p, groups, settings, seed)
    session = (sessions.feedback > 0).nonzero()[:, 0].numpy()  # [n]
    return findings + _auc_findings("click", labels, p, session, rivals["popularity"]["auc"])


def _calibration_findings(
    labels: Flags, p: Floats, groups: NDArray[np.int64], settings: Gate, seed: int
) -> list[_Finding]:
    overall = calibration_by_group(labels, p, np.zeros_like(groups), seed=seed)
    deciles = calibration_by_group(labels, p, groups, seed=seed)
    findings = []
    for found, everything in ((overall, True), (deciles, False)):
        limits = found.chance + settings.calibration_tolerance * found.rate  # [G]
        worst = int((found.ece - limits).argmax())
        value, limit = float(found.ece[worst]), float(limits[worst])
        decile = int(found.groups[worst])
        place = "" if everything else f" among the items of popularity decile {decile} of {settings.deciles}"
        sentence = (
            f"The calibration error of clicks{place} is {value:.4f}, above {limit:.4f}: "
            f"{found.chance[worst]:.4f} by chance and {settings.calibration_tolerance:g} of the positive rate, "
            f"{found.rate[worst]:.4f}."
        )
        criterion = "ece" if everything else f"ece_decile_{decile}"
        findings.append(_Finding("click", criterion, value, int(found.count[worst]), limit, value <= limit, sentence))
    return findings


def _exit_findings(labels: Flags, p: Floats, sessions: SessionBatch, baselines: Baselines, seed: int) -> list[_Finding]:
    own, constant = _log_losses(labels, p), _log_losses(labels, np.full_like(p, baselines.exit_rate))
    session = exit_labels(sessions)[0].numpy().nonzero()[0]  # [pages]
    # Many logs say next to nothing about who leaves: a head that knows only the rate is no worse than it, but for luck.
    limit = constant.mean() + ONE_SIDED * _clustered_error(own - constant, session)
    value = float(own.mean())
    # Where everybody leaves after every page, as in logs of single pages, there is nothing to tell apart.
    passed = bool(value <= limit) if 0 < labels.sum() < len(labels) else None
    sentence = (
        f"The log-loss of exits, {value:.4f}, is significantly above the base rate's {constant.mean():.4f} "
        f"(limit {limit:.4f})."
    )
    calibration = calibration_by_group(labels, p, np.zeros(len(p)), seed=seed)
    return [
        _Finding("exit", "log_loss_vs_base_rate", value, len(p), float(limit), passed, sentence),
        _Finding("exit", "ece", float(calibration.ece[0]), len(p), float(calibration.chance[0])),
        *_auc_findings("exit", labels, p, session),
    ]


def _auc_findings(
    head: str, labels: Flags, p: Floats, session: NDArray[np.int64], reference: float | None = None
) -> list[_Finding]:
    auc, low, high = auc_interval(labels, p, session)
    return [
        _Finding(head, "auc", auc, len(p), reference),
        _Finding(head, "auc_low", low, len(p)),
        _Finding(head, "auc_high", high, len(p)),
    ]


def _length_findings(twins: Twins, sessions: SessionBatch, settings: Gate) -> list[_Finding]:
    pages = exit_labels(sessions)[0].sum(dim=1).numpy()  # [S]
    ended = sessions.terminated.numpy()
    longest = int(pages.max())
    # Where a cap cut the longest sessions, nobody knows what would have come after it.
    horizon = 2 * longest if ended[pages == longest].all() else longest
    logged, simulated = survival(pages, ended, horizon), survival(twins.pages, twins.left, horizon)
    ks, n = float(np.abs(logged - simulated).max()), len(pages)
    means = float(simulated[:-1].sum()), float(logged[:-1].sum())  # Σ_t P(length > t), up to the horizon
    sentence = (
        f"The lengths of simulated and logged sessions differ: KS distance {ks:.3f}, above {settings.max_length_ks:g} "
        f"({means[0]:.2f} pages on average for {means[1]:.2f})."
    )
    return [
        _Finding("session", "length_ks", ks, n, settings.max_length_ks, ks <= settings.max_length_ks, sentence),
        _Finding("session", "length_wasserstein", float(np.abs(logged - simulated)[:-1].sum()), n),
        _Finding("session", "mean_pages", means[0], n, means[1]),
    ]


def _rate_findings(twins: Twins, n: int, settings: Gate) -> list[_Finding]:
    simulated, logged = float(twins.rate.mean()), float(twins.logged_rate.mean())
    # All first pages may have been without a positive answer; then no simulated one is infinitely too many.
    gap = abs(simulated / logged - 1) if logged else float("inf") if simulated else 0.0
    by_user = np.bincount(twins.user, twins.rate - twins.logged_rate) / np.bincount(twins.user)  # [S]
    noise = 1.96 * by_user.std() / np.sqrt(n) / logged if logged else float("nan")
    sentence = (
        f"The positive rate of simulated sessions is {simulated:.4f}, of logged ones {logged:.4f}: a gap of {gap:.1%}, "
        f"above {settings.max_rate_gap:.0%} (chance alone: ±{noise:.1%})."
    )
    return [
        _Finding("session", "positive_rate_gap", gap, n, settings.max_rate_gap, gap <= settings.max_rate_gap, sentence),
        _Finding("session", "positive_rate", simulated, n, logged),
        _Finding("session", "positive_rate_ks", float(ks_2samp(twins.rate, twins.logged_rate).statistic), n),
        _Finding("session", "positive_rate_wasserstein", float(wasserstein_distance(twins.rate, twins.logged_rate)), n),
    ]


def _log_losses(labels: Flags, p: Floats) -> Floats:
    """-log P(what happened), [n]."""
    likelihood: Floats = np.where(labels, p, 1 - p)
    return -np.log(np.maximum(likelihood, np.finfo(np.float64).tiny))


def _clustered_error(values: Floats, clusters: NDArray[np.int64]) -> float:
    """The standard error of a mean whose terms are independent between clusters only."""
    sums = np.bincount(clusters, values - values.mean())
    return float(np.sqrt(np.square(sums).sum()) / len(values))


def _relative_spread(answers: Floats) -> float:
    """Mean standard deviation over the members of ``answers`` [M, n], relative to their mean."""
    return float(answers.std(axis=0, ddof=1).mean() / answers.mean())


# ---- baselines and tables


def _shrunken_rates(positives: Tensor, impressions: Tensor, base: float) -> Tensor:
    """Posterior means (k + m·base) / (n + m) of each item, with m = 1/ρ − 1 the strength of the Beta prior.

    ρ, the correlation of two answers to one item, is Kleinman's moment estimate (JASA 1973, weights n): with
    Q = Σ n_i (k_i/n_i − p)², E Q = p(1 − p)·[items − 1 + ρ·Σ (1 − n_i/N)(n_i − 1)]. The unknown item takes no part.
    """
    known = impressions > 0
    known[0] = False
    k, n = positives[known], impressions[known]
    rates = torch.full_like(impressions, base)
    mean, total = float(k.sum() / n.sum()), float(n.sum())
    pairs = float(((1 - n / total) * (n - 1)).sum())
    if not 0 < mean < 1 or pairs <= 0:
        return rates
    spread = float((n * (k / n - mean) ** 2).sum()) / (mean * (1 - mean))
    correlation = min(max((spread - (len(n) - 1)) / pairs, 0.0), 1 - 1e-6)
    weight = n * correlation / (n * correlation + 1 - correlation)  # n / (n + m)
    rates[known] = weight * k / n + (1 - weight) * base
    return rates


def _popularity_groups(sessions: SessionBatch, baselines: Baselines, deciles: int) -> NDArray[np.int64]:
    """The popularity decile of each shown item, [n]: 1 = shown least in the fit window. Each has about as many rows."""
    counts = baselines.impressions.cpu()[sessions.items[sessions.feedback > 0]]
    return quantile_bins(counts.numpy(), deciles) + 1


def _bins(head: str, group: str, labels: Flags, p: Floats) -> list[dict[str, Any]]:
    points = zip(*(values.tolist() for values in reliability(labels, p)), strict=True)
    return [
        {"head": head, "group": group, "bin": number, "predicted": predicted, "observed": observed, "count": count}
        for number, (predicted, observed, count) in enumerate(points)
    ]


def _report(
    name: str, findings: Sequence[_Finding], bins: Sequence[dict[str, Any]], answers: pa.Table, twins: pa.Table
) -> GateReport:
    rows = [{"simulator": name, **asdict(finding)} for finding in findings]
    reasons = [row.pop("sentence") for row in rows]
    failed = [row["passed"] is False for row in rows]
    return GateReport(
        rows=rows,
        reliability=[{"simulator": name, **bin} for bin in bins],
        passed=not any(failed),
        reasons=[f"{name}: {reason}" for reason, fails in zip(reasons, failed, strict=True) if fails],
        answers=answers,
        twins=twins,
    )
