"""Leg 3: agents as policies, their estimates, and what of it comes to the leaderboard."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.base import StateBatch
from pipeline.evaluation.judged import Behaviour, Decisions, Judged
from pipeline.evaluation.off_policy import agent_policy, estimates, logged_slates, logging_policy
from pipeline.evaluation.off_policy_board import HEADLINES, board_rows, published_slates, refusal
from pipeline.evaluation.ope.estimate import difference
from pipeline.evaluation.ope.logged import Floats
from pipeline.evaluation.ope.policies import conditional_propensities, marginal_propensities, sample_slates
from pipeline.evaluation.ope.slates import SLATE_ESTIMATORS
from pipeline.plan import PRODUCTION
from pipeline.schemas import SCHEMAS
from pipeline.warehouse import read_table, write_parquet
from tests.conftest import Run

PAGES, K, R = 400, 3, 6


def judged(seed: int = 0, kind: str = "logged") -> tuple[Judged, Floats]:
    """Pages of three slots drawn by a softmax, whose rewards a model knows fairly well; and its logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(PAGES, R))
    slate = sample_slates(logits, K, rng)
    worth = rng.uniform(0.2, 0.8, (PAGES, R))
    rewards = (rng.random((PAGES, K)) < np.take_along_axis(worth, slate, axis=1)).astype(np.float32)
    zeros = torch.zeros(PAGES, 4, dtype=torch.int64)
    state = StateBatch.at_start(torch.zeros(PAGES, 2), zeros, zeros, pages=2, page_size=K)
    session = torch.arange(PAGES) // 2
    decisions = Decisions(
        session_id=session,
        user_key=session // 2,
        step=torch.arange(PAGES) % 2,
        hour=torch.zeros(PAGES, dtype=torch.int64),
        state=replace(state, pages_seen=torch.arange(PAGES) % 2),
        items=torch.arange(1, R + 1).repeat(PAGES, 1),
        keys=torch.arange(1, R + 1).repeat(PAGES, 1),
        mask=torch.ones(PAGES, R, dtype=torch.bool),
        slate=torch.from_numpy(slate),
        feedback=torch.from_numpy(1 + rewards).long(),
        rewards=torch.from_numpy(rewards),
        propensities=torch.full((PAGES, K), torch.nan, dtype=torch.float64),
        logits=torch.from_numpy(logits),
    )
    first = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    behaviour = Behaviour(conditional_propensities(logits, slate), marginal_propensities(logits, slate), first, kind)
    return Judged(decisions, behaviour, worth, np.zeros_like(worth), "logged"), logits


def rows_of(judged: Judged, logits: Floats | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    policy = logging_policy(judged) if logits is None else agent_policy(judged, logits, seed=0)
    rows = estimates(judged, policy, logged_slates(judged, policy))
    return {(row["setting"], row["estimator"]): row for row in rows}


def test_of_the_policy_that_made_the_log_every_estimate_is_the_logs_own_mean() -> None:
    log, _ = judged()
    rewards = log.decisions.rewards.numpy()
    means = {"slot": rewards.mean(), "page": rewards.sum(axis=1).mean(), "session": 2 * rewards.sum(axis=1).mean()}
    for (setting, name), row in rows_of(log).items():
        if "pseudo_inverse" not in name:
            assert row["value"] == pytest.approx(means[setting], rel=1e-5), name  # FQE's ridge draws it to 0 a little
            assert row["gain"] == pytest.approx(0, abs=1e-5)
            assert row["supported"], row["reason"]


def test_an_agent_that_ranks_as_the_log_did_is_that_policy_however_it_is_described() -> None:
    log, logits = judged()
    for key, row in rows_of(log, logits + 3.0).items():  # a shift of the logits changes no chance
        if "pseudo_inverse" not in key[1] and not key[1].endswith("dr") and key[1] != "fqe":
            assert row["value"] == pytest.approx(rows_of(log)[key]["value"])
            assert row["max_weight"] == pytest.approx(1)


def test_a_better_policy_is_seen_to_be_better_in_every_setting() -> None:
    log, logits = judged()
    rows = rows_of(log, logits + 1.5 * log.level)
    for key in (("slot", "sn_dr"), ("page", "sn_iips"), ("page", "cascade_dr"), ("session", "fqe")):
        assert rows[key]["supported"], key
        assert rows[key]["gain_low"] > 0, key
        assert rows[key]["ci_low"] < rows[key]["value"] < rows[key]["ci_high"]


def test_the_gain_is_the_value_beyond_the_log_and_its_interval_knows_that_both_share_their_luck() -> None:
    log, logits = judged()
    row = rows_of(log, logits + 0.2 * log.level)["page", "iips"]
    assert row["gain"] == pytest.approx(row["value"] - log.decisions.rewards.sum(dim=1).mean().item(), rel=1e-4)
    assert row["gain_high"] - row["gain_low"] < 0.5 * (row["ci_high"] - row["ci_low"])


def test_what_an_estimator_cannot_know_is_refused_with_its_reason() -> None:
    log, logits = judged(kind="logged by slot")
    rows = rows_of(log, logits)
    refused = {key for key, row in rows.items() if not row["supported"]}
    assert {key for key in rows if key[0] == "session"} <= refused
    assert ("page", "sips") in refused
    assert ("page", "sn_iips") not in refused
    assert "not of a slot given those above it" in rows["page", "rips"]["reason"]
    assert "a matrix of all pairs" in rows["page", "pseudo_inverse"]["reason"]


def test_a_session_of_which_a_page_is_not_known_is_no_trajectory() -> None:
    log, logits = judged()
    without = replace(log, decisions=log.decisions[torch.arange(PAGES) != 0])
    keep = np.arange(PAGES) != 0
    cut = replace(
        without,
        behaviour=replace(
            log.behaviour,
            **{name: getattr(log.behaviour, name)[keep] for name in ("conditional", "marginal", "first_slot")},
        ),
        level=log.level[keep],
        trend=log.trend[keep],
    )
    assert rows_of(cut, logits[keep])["session", "pdis"]["n"] == PAGES // 2 - 1


def published(folder: Path, name: str, seeds: dict[int, Floats | None], log: Judged, supported: bool = True) -> Path:
    """One agent's files of leg 3."""
    rows, pages = [], []
    for seed, logits in seeds.items():
        policy = logging_policy(log) if logits is None else agent_policy(log, logits, seed)
        slates = logged_slates(log, policy)
        rows += [{"agent": name, "seed": seed, "setting": "page", "estimator": estimator, "supported": supported,
                  "reason": "" if supported else "not enough overlap: an effective sample size of 3"}
                 for estimator in HEADLINES]  # fmt: skip
        lists = ("reward", "behaviour", "target", "behaviour_marginal", "target_marginal", "q_logged", "v_target")
        pages += [
            {"agent": name, "seed": seed, "session_id": i, "step": 0, "user_key": int(slates.user_key[i]),
             **{column: getattr(slates, column)[i].tolist() for column in lists}}
            for i in range(PAGES)
        ]  # fmt: skip
    folder.mkdir()
    for table, found in (("ope", rows), ("ope_pages", pages)):
        write_parquet(folder / f"{table}.parquet", table, pa.Table.from_pylist(found, SCHEMAS[table]).to_batches())
    return folder / "ope.parquet"


def test_the_leaderboard_averages_seeds_and_pairs_agents_on_the_same_pages(tmp_path: Path) -> None:
    log, logits = judged()
    better = {11: logits + log.level, 13: logits + 1.2 * log.level}
    files = [published(tmp_path / "iql", "iql", better, log), published(tmp_path / "pop", "pop", {11: logits}, log)]
    row = next(r for r in board_rows(files, "pop") if (r["agent"], r["setting"]) == ("iql", "page/sn_iips"))
    pages = read_table([files[0].with_name("ope_pages.parquet")], "ope_pages")
    iips = SLATE_ESTIMATORS["sn_iips"]
    terms = [iips.terms(published_slates(pages.slice(start, PAGES))) for start in (0, PAGES)]
    assert row["value"] == pytest.approx(np.mean([t.value for t in terms]))
    assert (row["seeds"], row["n"], row["users"], row["against"]) == (2, PAGES, PAGES // 4, "pop")
    other = iips.terms(logged_slates(log, agent_policy(log, logits, 11)))
    gaps = [difference(t, other) for t in terms]
    assert row["difference"] == pytest.approx(np.mean([gap for gap, *_ in gaps]))
    assert min(low for _, low, _ in gaps) < row["difference_low"] < row["difference"] < row["difference_high"]
    assert row["p_value"] < 0.05


def test_an_agent_one_seed_of_which_is_not_supported_is_not_on_the_leaderboard(tmp_path: Path) -> None:
    log, logits = judged()
    files = [
        published(tmp_path / "iql", "iql", {11: logits}, log, supported=False),
        published(tmp_path / "log", PRODUCTION, {11: None}, log),
    ]
    assert board_rows(files, "pop") == []  # nor is the log, with nobody beside it
    other = published(tmp_path / "pop", "pop", {11: logits}, log)
    assert {row["agent"] for row in board_rows([*files, other], "pop")} == {PRODUCTION, "pop"}
    ope = read_table(files, "ope")
    assert refusal(ope) == (
        "not enough overlap (2 of 2 estimates; iql by sn_iips: not enough overlap: an effective sample size of 3)"
    )
    assert "no logged test page" in refusal(ope.slice(0, 0))


def test_every_agent_without_privileges_has_estimates_and_the_logs_own_value_stands_beside(tiny: Run) -> None:
    rows = read_table(tiny.plan.store.files("ope"), "ope").to_pandas()
    assert set(rows["agent"]) == {PRODUCTION, *tiny.experiment.agents} - {
        "logged_order", "ideal", "oracle_myopic", "oracle_farsighted"}  # fmt: skip
    log = rows[rows.agent == PRODUCTION].set_index(["setting", "estimator"])
    rewards = read_table(tiny.plan.store.files("decisions"), "decisions").to_pandas().rewards
    assert log.value["page", "sn_iips"] == pytest.approx(np.mean([page.sum() for page in rewards]))
    refused = rows[~rows.supported]
    assert (refused.reason.str.len() > 0).all()
    assert not rows[rows.supported].value.isna().any()
