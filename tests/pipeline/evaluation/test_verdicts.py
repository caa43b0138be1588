"""The rules over hand-made tables: what may be said, and what may not."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.verdicts import agreement, build_verdicts, missing_controls, verdicts
from pipeline.report.board import Board
from pipeline.schemas import SCHEMAS
from tests.published import demo_tables, publish, table

WORLDS = ("truth", "judge/attention/natural")
CONTROLS = {"gru4rec": 5.5, "sasrec": 5.2, "lambdamart": 5.0, "bc": 4.0, "greedy_simulator": 5.0}
LEVELS = {"iql": 6.0, "iql_discount_0": 5.1, **CONTROLS}
RIVALS = ("iql_discount_0", "gru4rec", "sasrec", "lambdamart", "bc")


def board(levels: Mapping[str, float] = LEVELS, seeds: int = 5, extra: tuple[dict[str, Any], ...] = ()) -> Board:
    return Board(
        table(
            "leaderboard",
            [
                *(
                    {"agent": agent, "leg": "rollout", "setting": world, "metric": "return", "value": value,
                     "ci_low": value - 0.1, "ci_high": value + 0.1, "n": 100, "seeds": seeds}
                    for world in WORLDS for agent, value in levels.items()
                ),
                *extra,
            ],
        )
    )  # fmt: skip


def compared(**changes: float) -> pa.Table:
    """iql against its rivals in both worlds, 0.5 above at p = 0.001; a change names a rival's p in the judge."""
    return table(
        "comparisons",
        [
            {"agent": "iql", "against": rival, "leg": "rollout", "setting": world, "metric": "return",
             "difference": difference, "difference_low": difference - 0.2, "difference_high": difference + 0.2,
             "p_adjusted": abs(p), "family": "rl_helps", "seeds": 5, "seed_low": difference - 0.2,
             "seed_high": difference + 0.2}
            for rival in RIVALS
            for world in WORLDS
            for p in [changes.get(rival, 0.001) if world != "truth" else 0.001]
            for difference in [-0.5 if p < 0 else 0.5]
        ],
    )  # fmt: skip


def estimate(agent: str, low: float, setting: str = "session", seed: int = 1, supported: bool = True) -> dict[str, Any]:
    return {"agent": agent, "seed": seed, "setting": setting, "estimator": "snips", "value": low + 0.1, "ci_low": low,
            "ci_high": low + 0.2, "supported": supported}  # fmt: skip


def judged(
    found: Board | None = None,
    comparisons: pa.Table | None = None,
    ope: list[dict[str, Any]] | None = None,
    unsupported: Mapping[str, str] | None = None,
    decoding: pa.Table | None = None,
    rollout: pa.Table | None = None,
) -> list[dict[str, Any]]:
    answer = verdicts(
        found or board(),
        compared() if comparisons is None else comparisons,
        table("rollout", []) if rollout is None else rollout,
        table("ope", ope or []),
        table("decoding", []) if decoding is None else decoding,
        unsupported or {},
        resamples=500,
    )
    assert answer.schema == SCHEMAS["verdicts"]
    rows = answer.to_pylist()
    assert [row["place"] for row in rows] == list(range(1, len(rows) + 1))
    return list(rows)


def of(rows: list[dict[str, Any]], verdict: str, subject: str | None = None) -> dict[str, Any]:
    return next(row for row in rows if row["verdict"] == verdict and subject in {None, row["subject"]})


# ---- does RL help?


def test_rl_helps_where_an_agent_beats_its_twin_and_every_supervised_ranker_everywhere() -> None:
    rows = judged()
    assert (rows[0]["verdict"], rows[0]["holds"], rows[0]["headline"]) == ("rl_helps", True, "RL helps here: iql")
    assert "in true value and return in attention" in rows[0]["reason"]
    assert "Off-policy evaluation is silent on iql" in rows[0]["reason"]
    agent = of(rows, "rl_helps", "iql")
    assert agent["holds"] is True
    assert (
        "Against gru4rec: +0.500 [0.300, 0.700] in the storefront's truth (p = 0.001; 5 seeds from" in agent["reason"]
    )


@pytest.mark.parametrize(("rival", "p"), [("iql_discount_0", 0.06), ("gru4rec", 0.05), ("bc", 0.2), ("sasrec", -1.0)])
def test_one_rival_unbeaten_in_one_world_is_enough_to_say_no(rival: str, p: float) -> None:
    rows = judged(comparisons=compared(**{rival: p}))  # -1: significant, and the rival is ahead
    assert (rows[0]["holds"], rows[0]["headline"]) == (False, "RL is not shown to help here")
    assert of(rows, "rl_helps", "iql")["headline"] == f"iql is not shown to beat {rival} in attention"


def test_a_win_of_the_mean_that_one_seed_does_not_share_is_the_luck_of_training() -> None:
    rows = compared().to_pylist()
    lucky = table("comparisons", [row | ({"seed_low": -0.1} if row["against"] == "bc" else {}) for row in rows])
    assert judged(comparisons=lucky)[0]["holds"] is False
    assert "is not shown to beat bc" in of(judged(comparisons=lucky), "rl_helps", "iql")["headline"]


LOW, HIGH = estimate("iql", 4.0), estimate("gru4rec", 5.0)
OFF_POLICY = {
    "contradicts": ([LOW, HIGH], False, "contradicts iql: by snips of a session iql has [4.00, 4.20] and gru4rec"),
    "overlap": ([LOW, estimate("gru4rec", 4.1)], True, "does not put iql below gru4rec, and is silent on iql_disc"),
    "ours is not supported": ([LOW | {"supported": False}, HIGH], True, "is silent on iql: no estimate"),
    "theirs is not supported": ([LOW, HIGH | {"supported": False}], True, "is silent on iql: no estimate"),
    "one seed is not": ([LOW, estimate("iql", 4.0, seed=2, supported=False), HIGH], True, "is silent on iql"),
    "other settings": ([estimate("iql", 4.0, "page"), HIGH], True, "is silent on iql: no estimate"),
    "pages": ([estimate("iql", 4.0, "page"), estimate("bc", 5.0, "page")], True, "rewards at once, which foresight"),
    "the mean over seeds": ([LOW, estimate("iql", 6.0, seed=2), HIGH], True, "does not put iql below gru4rec"),
    "no control": ([LOW, estimate("popularity", 5.0)], True, "is silent on iql: no estimate"),
}  # fmt: skip


@pytest.mark.parametrize(("ope", "holds", "said"), OFF_POLICY.values(), ids=OFF_POLICY)
def test_only_supported_estimates_of_both_can_contradict(ope: list[dict[str, Any]], holds: bool, said: str) -> None:
    rows = judged(ope=ope)
    assert (rows[0]["holds"], of(rows, "rl_helps", "iql")["holds"]) == (holds, holds)
    assert said in of(rows, "rl_helps", "iql")["reason"]


@pytest.mark.parametrize(("seeds", "said"), [(1, "1 seed, and 3 are needed"), (2, "2 seeds, and 3 are needed")])
def test_few_seeds_give_no_verdict(seeds: int, said: str) -> None:
    rows = judged(board(seeds=seeds))
    assert (rows[0]["holds"], rows[0]["headline"]) == (None, f"No verdict: {said}")
    assert of(rows, "rl_helps", "iql")["headline"] == f"No verdict on iql: {said}"
    assert judged(board(seeds=3))[0]["holds"] is True


def test_a_comparison_that_was_not_made_gives_no_verdict() -> None:
    rows = judged(comparisons=compared().slice(1))
    assert rows[0]["headline"] == "No verdict: iql was not compared with iql_discount_0 in the storefront's truth"
    assert rows[0]["holds"] is None


def test_without_the_controls_there_is_no_verdict_and_what_is_missing_is_named() -> None:
    rows = judged(Board(demo_tables()["leaderboard"]), table("comparisons", []))
    assert (rows[0]["holds"], rows[0]["headline"]) == (None, "No verdict: controls not run")
    for missing in ("discount 0", "(gru4rec, sasrec, lambdamart and bc)", "greedy ranker"):
        assert missing in rows[0]["reason"]
    assert "roll-outs" not in rows[0]["reason"]


MISSING = {
    "iql_discount_0": "the same agents at discount 0",
    "bc": "supervised rankers (bc)",
    "greedy_simulator": "a greedy ranker on the training simulator's click probability",
}


@pytest.mark.parametrize(("agent", "said"), MISSING.items(), ids=MISSING)
def test_each_control_is_needed(agent: str, said: str) -> None:
    rows = judged(board({name: value for name, value in LEVELS.items() if name != agent}))
    assert rows[0]["headline"] == "No verdict: controls not run"
    assert f"Missing: {said}." in rows[0]["reason"]


def test_a_judge_is_needed_and_off_policy_evaluation_is_not() -> None:
    none = Board(table("leaderboard", [{"agent": a, "leg": "rerank", "setting": "paged", "metric": "map", "value": 0.1}
                                       for a in LEVELS]))  # fmt: skip
    reasons = {"rollout": "no user model passed the gate", "ope": "no overlap"}
    assert missing_controls(none, reasons) == [
        "roll-outs in an evaluation simulator (no user model passed the gate)"
    ]  # fmt: skip
    assert missing_controls(board(), reasons) == []
    assert judged(none, table("comparisons", []), unsupported=reasons)[0]["headline"] == (
        "No verdict: no user model may judge"
    )


# ---- does the data need it?


def decoded(greedy: float, ahead: float, noise: float = 0.1) -> pa.Table:
    rng = np.random.default_rng(1)
    taste = rng.normal(10, 1, 50)
    return table(
        "decoding",
        [
            {"setting": WORLDS[1], "decoder": name, "user_key": user, "return": value}
            for name, factor in (("greedy", greedy), ("best_page", 0.5), ("lookahead", ahead))
            for user, value in enumerate((factor * taste + rng.normal(0, noise, 50)).tolist())
        ],
    )


@pytest.mark.parametrize(
    ("greedy", "ahead", "noise", "holds", "headline"),
    [
        (0.8, 1.0, 0.1, True, "Looking ahead pays in attention"),
        (0.99, 1.0, 3.0, False, "Looking ahead is not shown to pay in attention"),
        (1.2, 1.0, 0.1, False, "Looking ahead costs in attention"),
    ],
)
def test_the_share_of_the_best_decoded_return(
    greedy: float, ahead: float, noise: float, holds: bool, headline: str
) -> None:
    row = of(judged(decoding=decoded(greedy, ahead, noise)), "needs_rl")
    assert (row["holds"], row["headline"], row["subject"]) == (holds, headline, WORLDS[1])
    if noise == 0.1:
        assert f"reaches {greedy / ahead:.1f}"[:-1] in row["reason"]  # the better of the two that do not look ahead
    assert "Mean returns of 50 users: greedy" in row["reason"]


def test_in_the_truth_the_two_oracles_are_the_decoders() -> None:
    row = of(judged(rollout=demo_tables()["rollout"]), "needs_rl", "truth")
    means = demo_tables()["rollout"].to_pandas().query("setting == 'truth'").groupby("agent")["return"].mean()
    assert row["holds"] is True
    assert f"reaches {means['oracle_myopic'] / means['oracle_farsighted']:.3f} [0.8" in row["reason"]


def test_without_a_decoder_there_is_no_verdict() -> None:
    row = of(judged(), "needs_rl")
    assert (row["holds"], row["headline"]) == (None, "No verdict: nothing was decoded")


# ---- what else was measured


def reranked(levels: Mapping[str, float]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"agent": agent, "leg": "rerank", "setting": "paged", "metric": "ndcg_reward_20", "value": value,
         "ci_low": value - 0.01, "ci_high": value + 0.01, "n": 100, "seeds": 5}
        for agent, value in levels.items()
    )  # fmt: skip


def test_legs_agree_unless_two_agents_are_ordered_oppositely_beyond_doubt() -> None:
    same = of(judged(board(extra=reranked({"iql": 0.6, "gru4rec": 0.5, "bc": 0.4}))), "legs_agree")
    assert (same["holds"], same["headline"]) == (True, "The legs agree")
    other = of(judged(board(extra=reranked({"iql": 0.4, "gru4rec": 0.5, "bc": 0.3}))), "legs_agree")
    assert (other["holds"], other["headline"]) == (False, "The legs disagree on 1 pair of agents")
    assert "True value puts iql over gru4rec, NDCG@20, paged the other way round" in other["reason"]
    alone = of(judged(), "legs_agree")
    assert (alone["holds"], alone["headline"]) == (None, "No verdict: one leg alone was measured")


def test_agreement_has_a_row_a_pair_of_columns() -> None:
    rows = agreement(board(extra=reranked({"iql": 0.4, "gru4rec": 0.5, "bc": 0.3}))).to_pylist()
    assert [(row["first_setting"], row["second_setting"]) for row in rows] == [
        WORLDS, ("truth", "paged"), (WORLDS[1], "paged")
    ]  # fmt: skip
    worlds, truth, _ = rows
    assert (worlds["tau"], worlds["opposed"], worlds["agents"]) == (pytest.approx(1), 0, len(LEVELS))
    assert (truth["tau"], truth["opposed"], truth["agents"]) == (pytest.approx(1 / 3), 1, 3)
    assert "order 3 agents with τ = 0.333" in truth["sentence"]


def test_the_gate_is_held_against_the_truth() -> None:
    row = of(judged(), "gate_predicts")
    assert (row["subject"], row["holds"]) == (WORLDS[1], True)
    assert row["headline"] == "attention orders the agents as the truth does"
    few = of(judged(board({"iql": 6.0, "bc": 4.0})), "gate_predicts")
    assert few["holds"] is None
    assert "too few agents in common (2)" in few["reason"]


def expected(over: tuple[float, ...]) -> Board:
    return board(
        extra=tuple(
            {"agent": "iql", "leg": "rollout", "setting": world, "metric": metric, "value": value, "ci_low": value - 1,
             "ci_high": value + 1, "n": 100, "seeds": 5}
            for world, more in zip(WORLDS, over, strict=True)
            for metric, value in (
                ("overestimation", more), ("predicted_return", 5 + more), ("discounted_return", 5.0))
        )
    )  # fmt: skip


def test_over_estimation_is_told_with_its_interval_in_every_world() -> None:
    row = of(judged(expected((7.2, 3.0))), "overestimation")
    assert (row["subject"], row["holds"]) == ("iql", True)
    assert row["headline"] == "iql expects 7.20 more than comes in the storefront's truth"
    assert "+7.20 [6.20, 8.20] beyond what comes in the storefront's truth (12.20 for 5.00)" in row["reason"]
    assert "+3.00 [2.00, 4.00] beyond what comes in attention" in row["reason"]
    assert of(judged(expected((7.2, 0.5))), "overestimation")["holds"] is False  # in the judge it may be chance
    under = of(judged(expected((-2.0, -3.0))), "overestimation")
    assert (under["holds"], under["headline"]) == (False, "iql expects 2.00 less than comes in the storefront's truth")


def test_the_best_ranker_is_told_beside_the_reference() -> None:
    row = of(judged(Board(demo_tables()["leaderboard"]), table("comparisons", [])), "best_agent")
    assert (row["subject"], row["holds"]) == ("goalrec_off", True)
    assert "the best ranker on trial is goalrec_off with 5.95 [5.71, 6.18]" in row["reason"]
    assert "significantly above it (p < 0.001, Holm over agents)" in row["reason"]


def test_an_empty_run_claims_nothing() -> None:
    rows = judged(board({}), table("comparisons", []))
    assert {row["holds"] for row in rows} == {None}


def test_the_asset_writes_all_three_tables(tmp_path: Path) -> None:
    tables = demo_tables() | {"unsupported": table("unsupported", [{"leg": "ope", "reason": "no overlap"}])}
    files = publish(tmp_path / "in", tables)
    budget = SimpleNamespace(bootstrap=100)
    experiment = SimpleNamespace(reference="popularity", seeds=(11, 13), budgets=lambda: budget)
    out = tmp_path / "out"
    job: Any = SimpleNamespace(experiment=experiment, files=files.__getitem__, folder=lambda name: out)
    build_verdicts(job)
    found = {name: pq.read_table(out / f"{name}.parquet") for name in ("verdicts", "comparisons", "agreement")}
    assert {name: part.schema.remove_metadata() for name, part in found.items()} == {
        name: SCHEMAS[name] for name in found
    }
    assert found["verdicts"]["headline"][0].as_py() == "No verdict: controls not run"
    assert found["agreement"].num_rows == 6
