"""A small set of published tables, made up and seeded, for tests of what comes after evaluation."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schemas import RERANK_METRICS, SCHEMAS

START = datetime(2024, 1, 1, tzinfo=UTC)
HOSTILE = "<script>alert(1)</script>"
RAW_USER = "raw-user-of-the-log"
REFERENCE = "popularity"
RERANKED = {"random": 0.30, "popularity": 0.42, "logged_order": 0.47, "goalrec_off": 0.50, HOSTILE: 0.45, "ideal": 1.0}
ROLLED_OUT = {
    "random": 4.7,
    "popularity": 5.0,
    "goalrec_off": 6.1,
    HOSTILE: 5.2,
    "logging": 5.5,
    "oracle_myopic": 8.5,
    "oracle_farsighted": 10.0,
}
SEES_THE_TRUTH = {"logging", "oracle_myopic", "oracle_farsighted"}
WORLDS = (
    ("truth", "truth", "truth"),
    ("judge/attention/natural", "attention", "judge"),
    ("train/rnn/natural", "rnn", "train"),
)
SEEDED = {"goalrec_off", HOSTILE}
PROVENANCE = {
    "data_hash": "d4ta" * 4,
    "code_hash": "c0de" * 4,
    "config_hash": "c0nf" * 4,
    "commit": "0123abcd",
    "versions": '{"python": "3.11", "torch": "2.13"}',
}
USERS, SESSIONS = 40, 60


def table(name: str, rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows as a published table; columns that are not given are null."""
    schema = SCHEMAS[name]
    complete = [{column: row.get(column) for column in schema.names} for row in rows]
    return pa.Table.from_pylist(complete, schema=schema)


def publish(folder: Path, tables: dict[str, pa.Table]) -> dict[str, list[Path]]:
    """Write each table as one Parquet file."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.parquet" for name in tables}
    for name, path in paths.items():
        pq.write_table(tables[name], path)
    return {name: [path] for name, path in paths.items()}


def demo_tables() -> dict[str, pa.Table]:
    """Two legs of a storefront experiment: re-ranking and the true value; off-policy evaluation is unsupported."""
    rng = np.random.default_rng(5)
    rerank, rollout = _rerank(rng), _rollout(rng)
    return {
        "events": table("events", _events()),
        "rejects": table(
            "rejects",
            [
                {"file": "a.csv", "line": n, "raw": RAW_USER, "reason": f"cannot read '{RAW_USER}' as a time"}
                for n in range(3)
            ],
        ),
        "ingest_counts": table(
            "ingest_counts", [{"path": "a.csv", "rows_in": 123, "events": 100, "duplicates": 20, "rejects": 3}]
        ),
        "manifest": table("manifest", [{"path": "a.csv", "kind": "events", "hash": "f00d", "size": 4096, "rows": 123}]),
        "data_report": table("data_report", data_report()),
        "splits": table("splits", _splits()),
        "users": table(
            "users",
            [
                {"user_id": f"{RAW_USER}-{n}", "user_key": n, "user": n, "train_sessions": n % 3}
                for n in range(1, USERS + 1)
            ],
        ),
        "sessions": table(
            "sessions",
            [
                {"session_id": n, "user_id": RAW_USER, "start_ts": START + timedelta(hours=n), "pages": 3}
                for n in range(SESSIONS)
            ],
        ),
        "simulator_gate": table("simulator_gate", _simulator_gate()),
        "simulator_reliability": table("simulator_reliability", _reliability()),
        "simulator_answers": table("simulator_answers", _simulator_answers()),
        "simulator_twins": table("simulator_twins", _simulator_twins()),
        "coverage": table("coverage", _coverage(rollout)),
        "ope": table("ope", _ope()),
        "ope_calibration": table(
            "ope_calibration",
            [{"bin": k, "predicted": 0.1 * k, "observed": 0.11 * k, "count": 50} for k in range(1, 6)],
        ),
        "training_log": table("training_log", [*_training_log(rng), *_trials()]),
        "validation_scores": table("validation_scores", _validation_scores()),
        "rerank": table("rerank", rerank),
        "rollout": table("rollout", rollout),
        "goal_sweep": table("goal_sweep", _goal_sweep()),
        "leaderboard": table("leaderboard", _leaderboard(rerank, rollout)),
        "decoding": table("decoding", _decoding()),
        "comparisons": table("comparisons", _comparisons()),
        "agreement": table("agreement", _agreement()),
        "verdicts": table("verdicts", _verdicts()),
        "ope_pages": table("ope_pages", _ope_pages()),
        "ope_chances": table("ope_chances", _ope_chances()),
        "ope_proof": table("ope_proof", _ope_proof()),
        "ope_proof_logs": table("ope_proof_logs", _ope_proof_logs()),
        "history": table("history", _history()),
        "unsupported": table(
            "unsupported", [{"leg": "ope", "reason": "page propensities leave an effective sample size under 50"}]
        ),
    }


def _splits() -> list[dict[str, Any]]:
    return [
        {"split": split, "start_ts": START + timedelta(days=first), "end_ts": START + timedelta(days=end),
         "sessions": sessions, "dropped": dropped}
        for split, first, end, sessions, dropped in [
            ("train", 0, 22, 1400, 7), ("validation", 22, 25, 200, 3), ("test", 25, 30, 260, 0)]
    ]  # fmt: skip


def data_report() -> list[dict[str, Any]]:
    """Rows of every section."""
    days = ["2024-01-01", "2024-01-02"]
    figures: list[tuple[str, str, str | None, float | None]] = [
        ("overview", "first_event", "2024-01-01 00:00:00", None),
        ("overview", "events", None, 144),
        ("overview", "positives_share", None, 0.2),
        ("overview", "shown_set_is_constructed", None, 0),
        ("ingest", "raw_files", None, 1),
        ("ingest", "rows_in", None, 123),
        ("rejects", "rows", f"cannot read … as {HOSTILE}", 3),
        ("coverage", "session_id", "impression", 1),
        ("coverage", "propensity", "impression", 0.75),
        ("coverage", "session_id", "click", 0.5),
        ("coverage", "propensity", "click", 0),
        *(("events_by_period", name, day, n) for name, n in (("impression", 58), ("click", 14)) for day in days),
        *(("feedback_by_period", name, day, n) for name, n in (("skip", 40), ("click", 10)) for day in days),
        *(("sessions_by_period", name, day, 30) for name in ("with_positive", "without_positive") for day in days),
        *(("users_by_period", name, day, 20) for name in ("known", "new") for day in days),
        ("items_by_period", "new", days[1], 5),
        *(("spread", "impressions_of_a_session", name, n) for name, n in (("mean", 2.5), ("p50", 2), ("max", 9))),
        ("spread", "sessions_of_a_user", "mean", 1.5),
        *(("histogram", "impressions_of_a_session", name, n) for name, n in (("1", 15), ("2–3", 40), ("8–15", 5))),
        ("histogram", "sessions_of_a_user", "1", 40),
        *(("popularity", name, "impressions", 0.25) for name in ("top_1_percent_share", "gini")),
        ("popularity", "gini", "positives", 0.5),
        ("cold_start", "cut_off", "2024-01-05 00:00:00", None),
        ("cold_start", "cold_users_share", None, 0.125),
    ]
    columns = ("section", "name", "bucket", "value", "place")
    return [dict(zip(columns, (*figure, place), strict=True)) for place, figure in enumerate(figures, start=1)]


def _events() -> list[dict[str, Any]]:
    return [
        {"event_id": n, "user_id": RAW_USER, "item_id": HOSTILE, "event_ts": START + timedelta(hours=n),
         "event_type": "click" if n % 5 == 0 else "impression", "event_date": date(2024, 1, 1 + n // 24)}
        for n in range(24 * 6)
    ]  # fmt: skip


def _simulator_gate() -> list[dict[str, Any]]:
    """The train side fails a criterion, the judge passes all."""
    figures = {"log_loss": (0.231, 0.262), "brier": (0.065, 0.07), "ece": (0.011, 0.02), "auc": (0.741, None)}
    return [
        {"simulator": name, "side": side, "head": head, "criterion": criterion, "value": value, "reference": limit,
         "passed": None if limit is None else (name, criterion) != ("rnn", "ece"), "n": 2600}
        for name, side in (("rnn", "train"), ("attention", "judge"))
        for head in ("click", "exit")
        for criterion, (value, limit) in figures.items()
    ] + [
        {"simulator": name, "side": side, "head": "session", "criterion": "mean_pages", "value": 2.25,
         "reference": 2.0, "passed": None, "n": 2}
        for name, side in (("rnn", "train"), ("attention", "judge"))
    ]  # fmt: skip


def _reliability() -> list[dict[str, Any]]:
    return [
        {"simulator": name, "head": "click", "group": group, "bin": k, "predicted": 0.05 * k, "observed": 0.06 * k,
         "count": 100}
        for name in ("rnn", "attention")
        for group in ("all", "1")
        for k in range(1, 5)
    ]  # fmt: skip


def _simulator_answers() -> list[dict[str, Any]]:
    """Two sessions of two pages of two items, the last page without a positive answer."""
    return [
        {"simulator": name, "head": head, "session_id": row * 2 // n, "row": row, "group": group,
         "predicted": 0.1 * (row + 1), "observed": row % 2 == 1 and row < 6, "base_rate": 0.3}
        for name in ("rnn", "attention")
        for head, n, group in (("click", 8, "1"), ("exit", 4, None))
        for row in range(n)
    ]  # fmt: skip


def _simulator_twins() -> list[dict[str, Any]]:
    """Each of the two sessions has two twins; the first of them stays a page longer."""
    return [
        {"simulator": name, "session_id": twin % 2, "twin": twin, "logged_pages": 2, "logged_ended": True,
         "simulated_pages": 3 if twin == 0 else 2, "simulated_ended": True, "logged_rate": 0.5,
         "simulated_rate": 0.25 * twin}
        for name in ("rnn", "attention")
        for twin in range(4)
    ]  # fmt: skip


def _coverage(rollout: list[dict[str, Any]]) -> list[dict[str, Any]]:
    runs = dict.fromkeys((row["setting"], row["agent"], row["seed"]) for row in rollout if row["setting"] != "truth")
    return [
        {
            "setting": setting,
            "agent": agent,
            "seed": seed,
            "episodes": USERS,
            "items_shown": 30,
            "items_known": 60,
            "items": list(range(1, 31)),
        }
        for setting, agent, seed in runs
    ]


def _ope() -> list[dict[str, Any]]:
    """Both seeds of two agents; random's estimates are not supported."""
    return [
        {"agent": agent, "seed": seed, "setting": "page", "estimator": estimator, "value": value,
         "ci_low": value - 0.1, "ci_high": value + 0.1, "gain": value - 0.9, "gain_low": value - 1.0,
         "gain_high": value - 0.8, "n": 500, "users": USERS, "ess": ess + seed, "tail_index": 0.3, "max_weight": 9.0,
         "mean_weight": 0.97, "mean_weight_error": 0.02, "clipped_share": 0.0, "overlap": 0.8, "supported": ess > 50,
         "reason": "" if ess > 50 else "effective sample size 31 under 50", "temperature": 1.0,
         "propensities": "fitted", "pool": "sampled"}
        for agent, value, ess in (("goalrec_off", 1.2, 140.0), (HOSTILE, 1.0, 120.0), ("random", 0.7, 20.0))
        for seed in ((11, 13) if agent in SEEDED else (11,))
        for estimator in ("sn_iips", "sn_cascade_dr", "sips")
    ]  # fmt: skip


def _trials() -> list[dict[str, Any]]:
    """What tuning logged of two trials of one agent."""
    return [
        {"agent": "goalrec_off", "seed": 11, "step": 200, "metric": f"trial rate={rate}: {metric}", "value": value}
        for rate, best in ((0.001, 0.38), (0.003, 0.41))
        for metric, value in (("loss", 0.7), ("best_validation", best), ("seconds", 12.0))
    ]


def _validation_scores() -> list[dict[str, Any]]:
    """Two sessions at the best step of the training and of a trial."""
    return [
        {"agent": "goalrec_off", "trial": trial, "seed": 11, "step": 200, "session_id": session, "value": 0.4 + session}
        for trial in (None, "rate=0.003")
        for session in (0, 1)
    ]


def _ope_pages() -> list[dict[str, Any]]:
    """Three pages of two slots that both seeds of an agent fill as the log did, or twice as readily."""
    chances = {name: [0.5, 0.25] for name in ("behaviour", "behaviour_marginal")}
    return [
        {"agent": "goalrec_off", "seed": seed, "session_id": 5, "user_key": 6, "step": step, "filled": [True, True],
         "reward": [1.0, 0.0],
         **chances, **{name: [0.5, 0.25 * (1 + step % 2)] for name in ("target", "target_marginal")},
         "q_logged": [0.6, 0.2], "v_target": [0.5, 0.3], "fqe_weight": 1.1,
         "overlap": 0.9}
        for seed in (11, 13)
        for step in range(3)
    ]  # fmt: skip


def _ope_chances() -> list[dict[str, Any]]:
    """The two slots of a page; the first's item is no candidate of the second."""
    labels = {"session_id": 5, "step": 0}
    return [labels | {"slot": 1, "shown": 0, "chances": [0.5, 0.25, 0.25]},
            labels | {"slot": 2, "shown": 2, "chances": [None, 0.5, 0.5]}]  # fmt: skip


def _ope_proof() -> list[dict[str, Any]]:
    """A claim that holds, and one without an upper bound that does not."""
    labels = {"setting": "page", "estimator": "rips", "target": "near", "n": 400, "logs": 50, "truth": 1.6}
    return [
        labels | {"claim": "coverage", "value": 0.94, "least": 0.9, "most": 0.98, "holds": True},
        labels | {"claim": "visibly_biased", "value": 0.01, "least": 0.05, "most": None, "holds": False},
    ]


def _ope_proof_logs() -> list[dict[str, Any]]:
    """What both claims rest on: intervals of which three in fifty miss the truth, and estimates 1 % above it."""
    labels = {"setting": "page", "estimator": "rips", "target": "near", "ranker": "near", "n": 400, "truth": 1.6}
    return [
        row
        for log in range(50)
        for row in (
            labels | {"claim": "coverage", "log": log, "value": 1.5, "ci_low": 1.4, "supported": True,
                      "ci_high": 1.7 if log >= 3 else 1.55},
            labels | {"claim": "visibly_biased", "log": log, "value": 1.616},
        )
    ]  # fmt: skip


def _history() -> list[dict[str, Any]]:
    """One figure in two published leaderboards, before and after the code changed."""
    return [
        {"published_at": START + timedelta(days=day), "leaderboard": f"b0a2d-{day}", "agent": "goalrec_off",
         "leg": "rerank", "setting": "paged", "metric": "map", "value": value, "ci_low": value - 0.02,
         "ci_high": value + 0.02, "n": 54, "data_hash": "d4ta" * 4, "code_hash": code, "config_hash": "c0nf" * 4,
         "commit": "0123abcd"}
        for day, value, code in ((40, 0.48, "01d" * 5), (41, 0.5, "c0de" * 4))
    ]  # fmt: skip


def _training_log(rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {"agent": agent, "seed": seed, "step": step, "metric": metric,
         "value": (0.3 + 0.1 * step / 300 if metric == "validation" else 1.0 - step / 400) + rng.normal(0, 0.01)}
        for agent in sorted(SEEDED)
        for seed in (11, 13)
        for step in (100, 200, 300)
        for metric in ("loss", "validation")
    ]  # fmt: skip


def _rerank(rng: np.random.Generator) -> list[dict[str, Any]]:
    ease = rng.normal(0, 0.1, SESSIONS)
    rows = []
    for agent, level in RERANKED.items():
        for seed in (11, 13) if agent in SEEDED else (11,):
            for mode in ("oneshot", "paged"):
                noise = rng.normal(0, 0.05, (SESSIONS, len(RERANK_METRICS)))
                values = np.clip(level + (mode == "paged") * 0.01 + ease[:, None] + noise, 0, 1)
                for session in range(SESSIONS):
                    scored = session % 10 != 0
                    metrics = dict(zip(RERANK_METRICS, values[session].tolist(), strict=True)) if scored else {}
                    rows.append(
                        {"session_id": session, "user_key": 1 + session % USERS, "agent": agent, "seed": seed,
                         "mode": mode, "candidates": 10 * (1 + session % 7), "positives": 3 if scored else 0,
                         "status": "scored" if scored else "no_positive", **metrics}
                    )  # fmt: skip
    return rows


def _rollout(rng: np.random.Generator) -> list[dict[str, Any]]:
    taste = rng.normal(0, 1.0, USERS)
    return [
        {"setting": setting, "simulator": simulator, "side": side, "sessions": "natural", "agent": agent, "seed": seed,
         "user_key": user, "return": value, "depth": 5.0, "clicks": value * 0.8, "purchases": value * 0.04,
         "ctr": value / 60}
        for setting, simulator, side in WORLDS
        for agent, level in ROLLED_OUT.items()
        if side == "truth" or agent not in SEES_THE_TRUTH
        for seed in ((11, 13) if agent in SEEDED else (11,))
        for user, value in enumerate((level + taste + rng.normal(0, 0.3, USERS)).tolist(), start=1)
    ]  # fmt: skip


def _goal_sweep() -> list[dict[str, Any]]:
    """One agent under four goals, on the first of the users of the roll-outs; the last goal is worse in everything."""
    rng = np.random.default_rng(6)
    figures = {
        "as trained": (4.9, 0.30, 5.0), "clicks": (5.2, 0.20, 5.1), "depth": (4.0, 0.10, 5.6), "exit": (2.0, 0.0, 3.0)
    }  # fmt: skip
    return [
        {"setting": setting, "agent": "goalrec_off", "seed": seed, "goal": goal, "weights": '{"clicks": 1.0}',
         "user_key": user, **dict(zip(("clicks", "purchases", "depth"), wished, strict=True)), "return": wished[0]}
        for setting, _, side in WORLDS
        if side != "train"
        for seed in (11, 13)
        for goal, mean in figures.items()
        for user in range(1, USERS - 9)
        for wished in [(np.array(mean) + rng.normal(0, 0.05, 3)).tolist()]
    ]  # fmt: skip


def _decoding() -> list[dict[str, Any]]:
    """Looking ahead is worth a quarter more than the best page at a time."""
    rng = np.random.default_rng(7)
    taste = rng.normal(0, 1.0, USERS)
    return [
        {"setting": "judge/attention/natural", "decoder": decoder, "user_key": user, "return": value, "depth": 5.0}
        for decoder, level in (("greedy", 8.0), ("best_page", 7.8), ("lookahead", 10.0))
        for user, value in enumerate((level + taste + rng.normal(0, 0.3, USERS)).tolist(), start=1)
    ]


def _comparisons() -> list[dict[str, Any]]:
    """One agent against two controls in both worlds that judge, and against the reference in re-ranking."""
    figures = [
        ("goalrec_off_discount_0", "discount_0", "rollout", "truth", "return", 0.8, 0.0004, 0.0016),
        ("goalrec_off_discount_0", "discount_0", "rollout", "judge/attention/natural", "return", 0.3, 0.04, 0.08),
        (HOSTILE, "supervised", "rollout", "truth", "return", 0.9, 0.0004, 0.0016),
        (HOSTILE, "supervised", "rollout", "judge/attention/natural", "return", -0.1, 0.6, 0.6),
        ("popularity", "reference", "rerank", "paged", "ndcg_reward_20", 0.08, 0.0004, 0.0004),
    ]
    return [
        {"agent": "goalrec_off", "against": against, "control": control, "leg": leg, "setting": setting,
         "metric": metric, "value": 6.1, "against_value": 6.1 - difference, "difference": difference,
         "difference_low": difference - 0.05, "difference_high": difference + 0.05, "effect_size": difference / 2,
         "share_better": 0.5 + difference / 4, "p_value": p, "p_adjusted": adjusted,
         "family": "beside_it" if control == "reference" else "rl_helps", "n": USERS, "users": USERS, "seeds": 2,
         "seed_low": difference - 0.02, "seed_high": difference + 0.02}
        for against, control, leg, setting, metric, difference, p, adjusted in figures
    ]  # fmt: skip


def _agreement() -> list[dict[str, Any]]:
    return [
        {"first_leg": "rollout", "first_setting": "truth", "second_leg": leg, "second_setting": setting, "agents": 4,
         "tau": tau, "p_value": p, "opposed": opposed, "sentence": f"True value and {setting} were compared."}
        for leg, setting, tau, p, opposed in (
            ("rollout", "judge/attention/natural", 1.0, 0.08, 0), ("rerank", "paged", 0.33, 0.7, 1))
    ]  # fmt: skip


def _verdicts() -> list[dict[str, Any]]:
    claims: list[tuple[str, str, bool | None, str, str]] = [
        ("rl_helps", "", None, "No verdict: controls not run", "Missing: supervised rankers (gru4rec and sasrec)."),
        ("rl_helps", "goalrec_off", None, "No verdict on goalrec_off: controls not run", "Against itself: +0.800."),
        ("best_agent", "goalrec_off", True, "goalrec_off is best by true value", "goalrec_off has 5.95 [5.71, 6.18]."),
        ("needs_rl", "truth", True, "Looking ahead pays in the storefront's truth", "It reaches 0.85 [0.83, 0.87]."),
        ("legs_agree", "", False, "The legs disagree on 1 pair of agents", f"{HOSTILE} over random, and back."),
        ("overestimation", "goalrec_off", True, "goalrec_off expects 7.20 more than comes", "+7.20 [6.90, 7.50]."),
    ]
    columns = ("verdict", "subject", "holds", "headline", "reason")
    return [dict(zip(columns, claim, strict=True)) | {"place": n} for n, claim in enumerate(claims, start=1)]


def _leaderboard(rerank: list[dict[str, Any]], rollout: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for mode in ("oneshot", "paged"):
        scored = [row for row in rerank if row["mode"] == mode and row["status"] == "scored"]
        for metric in RERANK_METRICS:
            rows += _summary(scored, "rerank", mode, metric)
    for setting, _, _ in WORLDS:
        episodes = [row for row in rollout if row["setting"] == setting]
        for metric in ("return", "depth", "clicks", "purchases", "ctr"):
            rows += _summary(episodes, "rollout", setting, metric)
    return rows


def _summary(source: list[dict[str, Any]], leg: str, setting: str, metric: str) -> list[dict[str, Any]]:
    values: dict[str, list[float]] = {}
    for row in source:
        values.setdefault(row["agent"], []).append(row[metric])
    base = float(np.mean(values[REFERENCE]))
    rows = []
    for agent, numbers in values.items():
        mean, half = float(np.mean(numbers)), 1.96 * float(np.std(numbers)) / len(numbers) ** 0.5
        seeds = 2 if agent in SEEDED else 1
        paired = {
            "against": REFERENCE, "difference": mean - base, "difference_low": mean - base - half / 4,
            "difference_high": mean - base + half / 4, "p_value": 0.0004 if abs(mean - base) > half / 4 else 0.4,
        }  # fmt: skip
        rows.append(
            {"agent": agent, "leg": leg, "setting": setting, "metric": metric, "value": mean, "ci_low": mean - half,
             "ci_high": mean + half, "n": len(numbers) // seeds, "users": USERS, "seeds": seeds,
             "seed_sd": 0.004 if seeds > 1 else None, **(paired if agent != REFERENCE else {}), **PROVENANCE}
        )  # fmt: skip
    return rows
