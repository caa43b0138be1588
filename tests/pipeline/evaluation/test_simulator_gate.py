"""The gate on a synthetic shop whose click and exit rates are known: the truth passes, each kind of lie is named."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from models.base import StateBatch
from models.feedback import FIRST_POSITIVE, Feedback
from models.simulators.base import SessionBatch, exit_labels, sample_feedback
from models.simulators.feedback import FeedbackConfig
from models.simulators.rnn import RNNConfig
from pipeline.errors import DataError, ModelError
from pipeline.evaluation.simulator_gate import Baselines, GateReport, judge, support
from pipeline.evaluation.twins import JudgedModel
from pipeline.experiment import Gate
from pipeline.results import build_results, query
from pipeline.schemas import SCHEMAS
from pipeline.simulation import with_classes
from tests.models.builders import ITEMS, USER_WIDTH, make_task
from tests.published import publish, table

TASK = make_task(rows=2, cols=2)
PAGES, K, SESSIONS = 25, 4, 600
ATTRACTION = torch.tensor([-1.0, *(-2.5 + 3.0 * ((7 * item) % ITEMS) / ITEMS for item in range(ITEMS))])  # click logit
TASTE = torch.tensor([0.0, *(1.5 * (-1) ** item for item in range(ITEMS))])  # what a user's first feature adds to it
SHOWN = torch.arange(1, ITEMS + 1) ** -0.5  # how often item 1, 2 … is shown: the first ones most
EXITS = (0.35, 0.15)  # after a page without a click, and with one
GATE = Gate()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Shop:
    """A user model that believes in ``attraction``, ``taste`` [I+1] and ``exits``; by default it is the truth."""

    task = TASK

    def __init__(
        self,
        attraction: Tensor = ATTRACTION,
        taste: Tensor = TASTE,
        exits: tuple[float, float] = EXITS,
        exit_head: bool = True,
    ) -> None:
        self.attraction, self.taste, self.exits, self.exit_head = attraction, taste, torch.tensor(exits), exit_head
        self.shown: list[Tensor] = []  # the pages of each step, [A, K]

    def reset_width(self) -> int:
        return 0

    def step_width(self, slots: int) -> int:
        return slots + 1

    def reset(self, state: StateBatch, draws: Tensor) -> Tensor:
        return state.user_features

    def positive_probabilities(self, hidden: Tensor, items: Tensor) -> Tensor:
        return (self.attraction[items] + hidden[:, :1] * self.taste[items]).sigmoid()

    def step(
        self, hidden: Tensor, items: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.shown.append(items)
        rates = self.positive_probabilities(hidden, items.clamp(min=0))
        clicks = torch.tensor([1.0, 0, 0, 0]).expand(*items.shape, 4)
        feedback = sample_feedback(rates, clicks, draws[:, :-1, None].expand(-1, -1, 2)).where(items >= 0, 0)
        return feedback, draws[:, -1] < self._exits((feedback >= FIRST_POSITIVE).any(dim=1)), hidden

    def predict(self, sessions: SessionBatch) -> dict[str, Any]:
        shown, (ends, leaves) = sessions.feedback > 0, exit_labels(sessions)
        clicked = sessions.feedback >= FIRST_POSITIVE
        rates = self.positive_probabilities(sessions.user_features, sessions.items)
        heads = {"click": (clicked[shown].numpy(), rates[shown].double().numpy())}
        if self.exit_head:
            on_page = clicked.view(len(sessions), -1, K).any(dim=2)[ends.view(len(sessions), -1, K)[:, :, -1]]
            heads["exit"] = (leaves[ends].numpy(), self._exits(on_page).double().numpy())
        return heads

    def _exits(self, clicked: Tensor) -> Tensor:
        return torch.where(clicked, self.exits[1], self.exits[0])


def sessions(n: int, seed: int, cap: int = PAGES) -> SessionBatch:
    """Logged sessions of at most ``cap`` full pages; items are clicked at their own rates."""
    random = torch.Generator().manual_seed(seed)
    items = 1 + torch.multinomial(SHOWN, n * cap * K, replacement=True, generator=random).view(n, cap, K)
    features = torch.randn(n, USER_WIDTH, generator=random)
    rates = (ATTRACTION[items] + features[:, 0, None, None] * TASTE[items]).sigmoid()
    clicked = torch.rand(items.shape, generator=random) < rates
    leave = torch.rand(n, cap, generator=random) < torch.where(clicked.any(dim=2), EXITS[1], EXITS[0])
    there = (leave.cumsum(dim=1) - leave.int() == 0)[:, :, None].expand_as(items)  # [n, cap, K]
    codes = torch.where(clicked, int(Feedback.CLICK), int(Feedback.SKIP))
    page_end = torch.zeros_like(there)
    page_end[:, :, -1] = there[:, :, -1]
    return SessionBatch(
        user_features=features,
        items=(items * there).flatten(1),
        feedback=(codes * there).flatten(1),
        page_end=page_end.flatten(1),
        terminated=leave.any(dim=1),
    )


@cache
def baselines() -> Baselines:
    return Baselines.fit(sessions(2000, 1), TASK.catalogue)


def judged(model: JudgedModel, window: SessionBatch | None = None, seed: int = 0) -> GateReport:
    window = sessions(SESSIONS, 2) if window is None else window
    return judge("shop", model, [model, Shop(), Shop(ATTRACTION + 0.1)], window, baselines(), GATE, seed)


def values(report: GateReport) -> dict[tuple[str, str], Any]:
    return {(row["head"], row["criterion"]): row["value"] for row in report.rows}


def failed(report: GateReport) -> set[str]:
    return {f"{row['head']} {row['criterion']}" for row in report.rows if row["passed"] is False}


# ---- the verdict


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_the_truth_passes(seed: int) -> None:
    report = judged(Shop(), sessions(SESSIONS, seed))
    assert report.passed, report.reasons
    assert report.reasons == []
    assert {row["passed"] for row in report.rows} == {True, None}
    assert {row["head"] for row in report.rows} == {"click", "exit", "session"}


def test_the_truth_passes_on_the_smallest_window_nearly_always() -> None:
    verdicts = [judged(Shop(), sessions(GATE.min_sessions, seed)).passed for seed in range(8)]
    assert sum(verdicts) >= 7


MOST_SHOWN = torch.zeros(ITEMS + 1).index_fill(0, torch.tensor([1, 2]), 1.0)


@pytest.mark.parametrize(
    ("model", "criteria", "sentence"),
    [
        (
            Shop(ATTRACTION + 1),
            {"click ece", "click ece_decile_6", "session positive_rate_gap"},
            r"positive rate of simulated sessions is 0\.\d+, of logged ones 0\.\d+: a gap of \d+\.\d%, above 15%",
        ),
        (
            Shop(torch.full_like(ATTRACTION, -0.7), 0 * TASTE),
            {f"click {score}_vs_{rival}" for score in ("log_loss", "brier") for rival in ("base_rate", "popularity")}
            | {"click ece_decile_10"},
            r"The log-loss of clicks, 0\.\d+, is not below the 0\.\d+ of the popularity",
        ),
        (
            Shop(exits=(0.7, 0.3)),
            {"exit log_loss_vs_base_rate", "session length_ks"},
            r"The lengths of simulated and logged sessions differ: KS distance 0\.\d+, above 0\.15 \(2\.\d+ pages on",
        ),
        (
            Shop(ATTRACTION + MOST_SHOWN),
            {"click ece_decile_10"},
            r"among the items of popularity decile 10 of 10 is 0\.\d+, above 0\.\d+: 0\.\d+ by chance and 0\.15 of",
        ),
    ],
    ids=["a logit too high", "a constant", "exits twice too often", "wrong in one decile"],
)
def test_a_lie_fails_the_criteria_that_see_it_and_is_named_with_numbers(
    model: Shop, criteria: set[str], sentence: str
) -> None:
    report = judged(model)
    assert not report.passed
    assert failed(report) == criteria
    assert len(report.reasons) == len(criteria)
    assert re.search(sentence, " ".join(report.reasons))


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (lambda: sessions(99, 2), "shop: The window has 99 sessions; a verdict needs 100."),
        (lambda: sessions(100, 2)[:0], "shop: The window has 0 sessions; a verdict needs 100."),
        (lambda: skips(sessions(100, 2)), "shop: The window has 0 positive answers to 1880 shown items; a verdict"),
    ],
)
def test_a_window_that_is_too_small_says_so(window: Callable[[], SessionBatch], reason: str) -> None:
    report = judged(Shop(), window())
    assert not report.passed
    assert len(report.reasons) == len(report.rows) == 1
    assert report.reasons[0].startswith(reason)


def skips(window: SessionBatch) -> SessionBatch:
    return replace(window, feedback=window.feedback.clamp(max=int(Feedback.SKIP)))


def test_a_model_without_an_exit_head_is_judged_by_the_length_of_its_sessions() -> None:
    report = judged(Shop(exit_head=False))
    [exit_row] = [row for row in report.rows if row["head"] == "exit"]
    assert (exit_row["value"], exit_row["passed"]) == (None, None)
    assert report.passed
    assert failed(judged(Shop(exits=(0.7, 0.3), exit_head=False))) == {"session length_ks"}


def test_an_exit_head_that_knows_the_rate_alone_is_not_worse_than_it() -> None:
    rate = baselines().exit_rate
    for seed in (2, 3, 4):
        assert "exit log_loss_vs_base_rate" not in failed(
            judged(Shop(exits=(rate + 0.01, rate - 0.01)), sessions(SESSIONS, seed))
        )


def test_where_everybody_leaves_after_a_page_there_is_no_exit_to_predict() -> None:
    window = sessions(SESSIONS, 2, cap=1)
    report = judged(Shop(exits=(1.0, 1.0)), replace(window, terminated=torch.ones_like(window.terminated)))
    [passed] = [r["passed"] for r in report.rows if (r["head"], r["criterion"]) == ("exit", "log_loss_vs_base_rate")]
    assert passed is None


def test_the_report_is_fixed_by_the_seed() -> None:
    first, again, other = (judged(Shop(), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert values(first)["session", "mean_pages"] != values(other)["session", "mean_pages"]
    assert values(first)["click", "log_loss_vs_base_rate"] == values(other)["click", "log_loss_vs_base_rate"]


def test_the_reliability_bins_cover_all_shown_items_once_overall_and_once_by_decile() -> None:
    window = sessions(SESSIONS, 2)
    report = judged(Shop(), window)
    count = {
        (head, whole): sum(
            row["count"] for row in report.reliability if row["head"] == head and (row["group"] == "all") == whole
        )
        for head in ("click", "exit")
        for whole in (True, False)
    }
    shown = int((window.feedback > 0).sum())
    assert count == {
        ("click", True): shown,
        ("click", False): shown,
        ("exit", True): int(window.page_end.sum()),
        ("exit", False): 0,
    }
    assert {row["group"] for row in report.reliability} == {"all", *map(str, range(1, 11))}


def test_the_rows_have_the_published_columns() -> None:
    report = judged(Shop())
    assert {*report.rows[0], "side"} == {*SCHEMAS["simulator_gate"].names}  # the side is the caller's
    assert {*report.reliability[0]} == {*SCHEMAS["simulator_reliability"].names}


SETTINGS = {("session", criterion, "reference") for criterion in ("length_ks", "positive_rate_gap")}


def numbers(report: GateReport) -> set[tuple[str, str, str]]:
    """Head, criterion and kind of each number of a report."""
    return {
        (row["head"], row["criterion"], number)
        for row in report.rows
        for number in ("value", "reference")
        if row[number] is not None
    }


def drawn(key: tuple[str, str, str]) -> bool:
    """Whether a number is the limit of a calibration error: what labels drawn from the predictions show."""
    return key[1].startswith("ece") and key[2] == "reference"


def recomputed(report: GateReport, folder: Path) -> list[pd.DataFrame]:
    """The answers of both queries on the results of a report alone, all of them right."""
    tables = {"simulator_gate": table("simulator_gate", report.rows), "simulator_answers": report.answers,
              "simulator_reliability": table("simulator_reliability", report.reliability),
              "simulator_twins": report.twins}  # fmt: skip
    build_results(publish(folder / "data", tables), folder / "results.duckdb")
    found = []
    for name in ("gate_recomputed", "gate_twins_recomputed"):
        answer = query(folder / "results.duckdb", name).to_pandas()
        assert answer["error"].abs().max() < 1e-9
        assert answer["error"].notna().all()
        assert (answer["n_rows"] == answer["n"]).all()
        found.append(answer)
    return found


@pytest.mark.parametrize(
    ("model", "window"),
    [
        (Shop(), lambda: sessions(SESSIONS, 2)),
        (Shop(exits=(0.7, 0.3)), lambda: sessions(150, 3, cap=4)),
        (Shop(torch.full_like(ATTRACTION, -0.7), 0 * TASTE), lambda: sessions(SESSIONS, 2)),
        (Shop(80 * ATTRACTION, exits=(1.0, 0.0)), lambda: sessions(SESSIONS, 2)),
        (Shop(exit_head=False), lambda: sessions(SESSIONS, 2)),
    ],
    ids=["the truth", "sessions that a cap cut", "ties", "probabilities of 0 and 1", "no exit head"],
)
def test_every_number_is_computed_again_from_its_rows(
    model: Shop, window: Callable[[], SessionBatch], tmp_path: Path
) -> None:
    report = judged(model, window())
    predictions, twins = recomputed(report, tmp_path)
    criteria = predictions[predictions["group"].isna()]
    answered = {*zip(criteria["head"], criteria["figure"], criteria["number"], strict=True)}
    answered |= {("session", *key) for key in zip(twins["criterion"], twins["number"], strict=True)}
    assert answered == {key for key in numbers(report) if not drawn(key)} - SETTINGS
    assert len(predictions) - len(criteria) == 2 * len(report.reliability)
    for head in {row["head"] for row in report.rows}:
        rows = query(tmp_path / "results.duckdb", "gate_rows", {"simulator": "shop", "head": head})
        heads = report.answers["head"].to_pylist()
        assert rows.num_rows == (report.twins.num_rows if head == "session" else heads.count(head))


def test_the_rows_are_the_predictions_in_the_order_of_showing_and_the_twins_of_all_sessions() -> None:
    window = sessions(150, 2, cap=4)
    report = judged(Shop(), window)
    answers, twins = report.answers.to_pandas(), report.twins.to_pandas()
    shown, ends = (mask.numpy() for mask in (window.feedback > 0, window.page_end))
    for head, judged_here in (("click", shown), ("exit", ends)):
        rows, (labels, p) = answers[answers["head"] == head], Shop().predict(window)[head]
        np.testing.assert_array_equal(rows["session_id"], np.repeat(np.arange(150), judged_here.sum(axis=1)))
        np.testing.assert_array_equal(rows["observed"], labels)
        np.testing.assert_array_equal(rows["predicted"], p)
        assert rows["group"].isna().all() == (head == "exit")
    by_session = twins.groupby("session_id")[["logged_pages", "logged_ended"]]
    assert (by_session.size() == 14).all()  # twins of each session, for 2,000 in all
    np.testing.assert_array_equal(by_session.first()["logged_pages"], ends.sum(axis=1))
    np.testing.assert_array_equal(by_session.first()["logged_ended"], window.terminated)
    assert not twins.loc[~twins["logged_ended"], "simulated_pages"].gt(4).any()


def test_disagreement_is_the_spread_of_the_members_over_their_mean() -> None:
    spread = values(judged(Shop()))["click", "disagreement"]
    shown = sessions(SESSIONS, 2)
    members = [Shop(), Shop(), Shop(ATTRACTION + 0.1)]
    answers = np.stack([member.predict(shown)["click"][1] for member in members])
    assert spread == pytest.approx(answers.std(axis=0, ddof=1).mean() / answers.mean())


def test_a_fitted_model_can_be_judged() -> None:
    config = RNNConfig(hidden=8, layers=(8,), history=False)
    members = [config.build(TASK).fit(lambda step: sessions(32, 50 + step), 5, seed) for seed in range(3)]
    report = judge("rnn", members[0], members, sessions(100, 2), baselines(), GATE)
    assert values(report)["click", "disagreement"] > 0
    assert all(row["simulator"] == "rnn" and np.isfinite(row["value"]) for row in report.rows)


def with_orders(count: int, seed: int) -> SessionBatch:
    """Sessions in which every other item that is liked is bought, of users without a past."""
    window = sessions(count, seed)
    ordered = (window.feedback >= FIRST_POSITIVE) & (window.items % 2 == 0)
    none = torch.zeros(count, 4, dtype=torch.int64)
    return replace(window, feedback=window.feedback.masked_fill(ordered, Feedback.PURCHASE), initial_items=none)


def test_what_mahrl_reports_of_its_user_model_is_computed_again_from_its_rows(tmp_path: Path) -> None:
    config = FeedbackConfig(hidden=8, width=8, history=4)
    members = [config.build(TASK).fit(lambda step: with_orders(32, 50 + step), 5, seed) for seed in range(3)]
    window = with_orders(100, 2)
    report = judge("feedback", members[0], members, window, baselines(), GATE)
    assert with_classes(report, "shop", Shop(), window) is report
    report = with_classes(report, "feedback", members[0], window)
    predictions, _ = recomputed(report, tmp_path)
    answers = predictions[predictions["head"] == "answer"]
    assert {*zip(answers["figure"], answers["number"], strict=True)} == {
        ("precision", "value"), ("precision", "reference"), ("log_loss", "value"), ("log_loss", "reference"),
        ("auc_skip", "value"), ("auc_click", "value"), ("auc_order", "value"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: judge("shop", Shop(), [Shop()] * 2, sessions(9, 2), baselines(), GATE), ModelError, "has 2 members"),
        (lambda: judged(Short()), ModelError, r"shop predicts \d+ clicks for \d+ shown items"),
        (lambda: judged(Shop(ATTRACTION * torch.nan)), DataError, "predictions are not finite"),
        (lambda: judged(Shop(), gap(sessions(100, 2))), DataError, "Pad sessions on the right"),
    ],
)
def test_what_cannot_be_judged_is_refused(action: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        action()


class Short(Shop):
    def predict(self, sessions: SessionBatch) -> dict[str, Any]:
        labels, p = super().predict(sessions)["click"]
        return {"click": (labels[1:], p[1:])}


def gap(window: SessionBatch) -> SessionBatch:
    feedback = window.feedback.clone()
    feedback[0, 0] = 0
    return replace(window, feedback=feedback)


# ---- baselines and helpers


def test_the_baselines_are_the_rates_of_the_fit_window() -> None:
    window = sessions(500, 3)
    found = Baselines.fit(window, TASK.catalogue)
    shown, positive = (window.feedback > 0).numpy(), (window.feedback >= FIRST_POSITIVE).numpy()
    assert found.positive_rate == pytest.approx(positive.sum() / shown.sum())
    assert found.exit_rate == pytest.approx(window.terminated.sum().item() / window.page_end.sum().item())
    np.testing.assert_array_equal(found.impressions, np.bincount(window.items.numpy()[shown], minlength=ITEMS + 1))
    assert found.item_rates[0] == pytest.approx(found.positive_rate)


def test_an_items_rate_is_pulled_to_the_base_rate_the_more_the_less_it_was_shown() -> None:
    """Against the Beta prior that the items' rates were really drawn from: strength 10 around 0.2."""
    random = np.random.default_rng(0)
    items, alpha, beta = 2000, 2.0, 8.0
    truth, n = random.beta(alpha, beta, items), random.integers(1, 40, items)
    k = random.binomial(n, truth)
    n[-5:] = k[-5:] = 0  # never shown
    found = Baselines.fit(one_page_each(n, k), make_task(items=items).catalogue)
    expected = (k + alpha) / (n + alpha + beta)
    np.testing.assert_allclose(found.item_rates[1:], expected, atol=0.03)
    np.testing.assert_allclose(found.item_rates[-5:], found.positive_rate)


def one_page_each(shown: np.ndarray, positive: np.ndarray) -> SessionBatch:
    """A session of one page of one item for each showing."""
    items = torch.from_numpy(np.repeat(1 + np.arange(len(shown)), shown))[:, None]
    first = np.arange(shown.sum()) - np.repeat(shown.cumsum() - shown, shown)
    clicked = torch.from_numpy(first < np.repeat(positive, shown))[:, None]
    feedback = torch.where(clicked, int(Feedback.CLICK), int(Feedback.SKIP))
    everywhere = torch.ones_like(clicked)
    return SessionBatch(torch.zeros(len(items), 1), items, feedback, everywhere, everywhere[:, 0])


def test_items_that_differ_by_chance_alone_all_have_the_base_rate() -> None:
    random = np.random.default_rng(0)
    n = random.integers(5, 40, ITEMS)
    found = Baselines.fit(one_page_each(n, np.round(0.2 * n).astype(int)), TASK.catalogue)
    np.testing.assert_allclose(found.item_rates, found.positive_rate)


def test_support_counts_the_showings_of_the_fit_window() -> None:
    counts = torch.tensor([0, 4, 5, 6])
    shown = torch.tensor([[0, 1, 2], [3, -1, -1]])
    assert support(counts, shown, 5).tolist() == [[False, False, True], [True, True, True]]
