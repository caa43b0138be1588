"""Canaries: an item and a user from after the cut-off leave no trace in what is fitted; who lets them in is told."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from models import AGENTS
from models.base import AgentConfig, Task
from models.feedback import Feedback
from pipeline import simulation
from pipeline.artifacts import load_agent
from pipeline.embeddings import build_item_embeddings
from pipeline.entities import build_items, build_mentions, build_users
from pipeline.evaluation.decisions import TABLES, build_decisions
from pipeline.evaluation.rerank import rerank
from pipeline.evaluation.sessions import CandidateSessions, load_sessions
from pipeline.experiment import RANKS_BY_A_USER_MODEL, Experiment
from pipeline.features import build_features
from pipeline.leakage import CANARIES, leaks
from pipeline.sessions import build_sessions
from pipeline.simulation import fit_simulator
from pipeline.sources.base import ITEM_COLUMNS, USER_COLUMNS
from pipeline.splits import build_splits, check_splits
from pipeline.task import TASK_TABLES, load_task
from pipeline.training import train_agent
from pipeline.trajectories import build_candidates, build_trajectories
from tests.conftest import TINY
from tests.pipeline.logs import DAY, START, at, days, event, read_rows, under, write_events, write_rows

VALIDATION, TEST, LATE, END = 4, 5, 5.5, 6  # days; the canaries come at LATE
SETTINGS: dict[str, Any] = TINY | {
    "sessions": {"rows": 2, "cols": 2},
    "splits": {"validation": "2024-01-05", "test": "2024-01-06"},
    "embeddings": {"dim": 4},
    "hindsight": {"embedding_components": 2},
    "history": {"positives": 3, "pages": 2},
    "agents": {"goalrec_off": {}, "popularity": {}},
}
EXPERIMENT = Experiment.model_validate(SETTINGS)
Row = dict[str, Any]


@dataclass(frozen=True)
class World:
    """A small log and all that is fitted on it."""

    folder: Path
    files: dict[str, list[Path]]

    def rows(self, table: str) -> list[Row]:
        return [row for path in self.files[table] for row in read_rows(path)]

    def with_table(self, folder: Path, table: str, rows: list[Row]) -> "World":
        return replace(self, files={**self.files, table: [write_rows(folder / f"{table}.parquet", table, rows)]})

    def leaks(self, table: str) -> list[str]:
        return leaks(table, self.files.__getitem__, EXPERIMENT)


@cache
def log() -> list[Row]:
    """Visits of three pages of four items; each user clicks what stands next to his own taste, within a minute."""
    rng = np.random.default_rng(4)
    events = []
    for visit in range(300):
        user, start = int(rng.integers(16)), float(rng.uniform(0, END * 24 - 1))
        for page in range(3):
            for position, item in enumerate(rng.permutation(24)[:4].tolist()):
                shown = at(start + page / 30)
                where = {"request_id": f"r{visit}-{page}", "category": f"c{item % 5}"}
                events.append(event(f"u{user}", f"i{item}", shown, position=position, **where))
                if rng.random() < (0.6 if item % 4 == user % 4 else 0.15):
                    kind = "purchase" if rng.random() < 0.3 else "click"
                    events.append(event(f"u{user}", f"i{item}", shown + timedelta(seconds=20), kind, **where))
    return events


def with_canaries(events: list[Row]) -> list[Row]:
    """The log with an item and a user that nobody had seen before, in the place of others, from LATE on."""

    def renamed(row: Row) -> Row:
        if row["event_ts"] < START + LATE * DAY:
            return row
        item = {"item_id": "canary", "category": "birds"} if row["item_id"] == "i0" else {}
        return row | item | ({"user_id": "stranger"} if row["user_id"] == "u0" else {})

    return [renamed(row) for row in events]


def build(folder: Path, events: list[Row], canaries: bool = False) -> World:
    """Everything from the events to the trajectories, by the functions that the assets call."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = write_events(folder / "events.parquet", events)
    outs, parts = (under(folder, "impressions"), under(folder, "sessions")), days(END)
    build_sessions([raw], parts, EXPERIMENT.sessions, EXPERIMENT.rewards, None, *outs)
    files = {table: [out(part) for part in parts] for table, out in zip(("impressions", "sessions"), outs, strict=True)}
    files["events"] = [raw]
    files["features"] = [under(folder, "features")(part) for part in parts]
    made = ("splits", "mentions", "items", "users", "item_embeddings", "trajectories", "candidates")
    files |= {table: [folder / f"{table}.parquet"] for table in made}
    described = _catalogues(folder, canaries)
    log_files = {table: files[table] for table in ("impressions", "sessions", "splits")}
    build_splits(files["sessions"], EXPERIMENT.splits, *files["splits"])
    build_mentions([raw], False, *files["mentions"])
    build_items(**log_files, described=described["items"], mentions=files["mentions"], out=files["items"][0])
    build_users(**log_files, described=described["users"], out=files["users"][0])
    embeddings = files["item_embeddings"][0]
    build_item_embeddings(**log_files, items=files["items"], settings=EXPERIMENT.embeddings, out=embeddings)
    build_features(files["impressions"], described["items"], parts, under(folder, "features"))
    states = {table: files[table] for table in (*log_files, "items", "users", "item_embeddings", "features")}
    build_trajectories(states, EXPERIMENT, *files["trajectories"])
    build_candidates(states, EXPERIMENT, *files["candidates"])
    return World(folder, files)


def _catalogues(folder: Path, canaries: bool) -> dict[str, Path]:
    """Free features of items and users; those of the canaries are far off and more than anybody else has."""
    found = {}
    for table, columns, names, canary in (
        ("items", ITEM_COLUMNS, [f"i{n}" for n in range(24)], "canary"),
        ("users", USER_COLUMNS, [f"u{n}" for n in range(16)], "stranger"),
    ):
        key = f"{table.removesuffix('s')}_id"
        rows = [dict.fromkeys(columns) | {key: name, "features": [float(n), 1.0]} for n, name in enumerate(names)]
        rows += [dict.fromkeys(columns) | {key: canary, "features": [1e6, 1e6, 1e6]}] if canaries else []
        found[table] = folder / f"described_{table}.parquet"
        typed = {name: pa.array([row[name] for row in rows], _DESCRIBED.get(name, pa.string())) for name in columns}
        pq.write_table(pa.table(typed), found[table])
    return found


_DESCRIBED = {"features": pa.list_(pa.float32()), "price": pa.float64(), "listed_ts": pa.timestamp("us", tz="UTC")}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("before"), log())


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("after"), with_canaries(log()), canaries=True)


# ---- nothing fitted knows the canaries


def test_the_canaries_are_in_the_log_and_in_no_training_session(after: World) -> None:
    impressions = after.rows("impressions")
    assert {"canary", "stranger"} <= {row[key] for row in impressions for key in ("item_id", "user_id")}
    seen = [row["impression_ts"] for row in impressions if "canary" in row.values() or "stranger" in row.values()]
    assert min(seen) >= START + LATE * DAY
    assert {row["split"]: row["sessions"] > 20 for row in after.rows("splits")} == dict.fromkeys(
        ("train", "validation", "test"), True
    )


@pytest.mark.parametrize("table", ["item_embeddings", "trajectories"])
def test_what_is_fitted_is_the_same_to_the_byte(before: World, after: World, table: str) -> None:
    assert before.files[table][0].read_bytes() == after.files[table][0].read_bytes()


def test_the_scale_of_the_measurements_is_the_same_to_the_byte(before: World, after: World) -> None:
    first, second = ((world.folder / "measurement.json").read_bytes() for world in (before, after))
    assert first == second
    assert json.loads(first)["scale"]


@pytest.mark.parametrize(("table", "key", "canary"), [("items", "item_id", "canary"), ("users", "user_id", "stranger")])
def test_a_canary_has_no_number_and_changes_nobody_elses(
    before: World, after: World, table: str, key: str, canary: str
) -> None:
    rows = {row[key]: row for row in after.rows(table)}
    found = rows.pop(canary)
    numbers = [found.get(name, 0) for name in ("item", "user", "category_code", "train_impressions", "train_sessions")]
    assert not any(numbers)
    assert len(found["features"]) == 2  # the width is that of the training window
    assert rows == {row[key]: row for row in before.rows(table)}


def _task(world: World) -> Task:
    return load_task({table: world.files[table] for table in TASK_TABLES}, EXPERIMENT)


def _tensors(value: Any) -> list[Tensor]:
    return [field for field in vars(value).values() if isinstance(field, Tensor)]


def test_agents_are_told_the_same_of_the_world(before: World, after: World) -> None:
    tasks = _task(before), _task(after)
    pairs = [
        pair
        for kind in (lambda t: t, lambda t: t.catalogue)
        for pair in zip(*map(_tensors, map(kind, tasks)), strict=True)
    ]
    assert len(pairs) > 5
    for pair in pairs:
        assert_close(*pair, rtol=0, atol=0, equal_nan=True)
    assert len(tasks[1].catalogue) == 1 + 24


def test_sessions_from_before_the_canaries_are_the_same_candidates(before: World, after: World) -> None:
    early = [
        [row for row in world.rows("candidates") if row["start_ts"] < START + (LATE - 0.1) * DAY]
        for world in (before, after)
    ]
    assert len(early[0]) > 20
    assert early[0] == early[1]


def _train(world: World, name: str, folder: Path) -> Path:
    inputs = {table: world.files[table] for table in (*TASK_TABLES, "candidates")}
    train_agent(name, AGENTS[name], EXPERIMENT, inputs, folder / "work", folder / name)
    return folder / name / "seed-11"


@pytest.mark.parametrize("name", ["goalrec_off", "popularity"])
def test_trained_weights_are_the_same_to_the_byte(before: World, after: World, tmp_path: Path, name: str) -> None:
    first, second = (_train(world, name, tmp_path / label) for world, label in ((before, "b"), (after, "a")))
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (first, second)]
    assert contents[0]
    assert contents[0] == contents[1]


def test_a_user_model_of_the_training_window_is_the_same_to_the_byte(
    before: World, after: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    monkeypatch.setattr(simulation, "in_processes", lambda fit, members, device: [fit(member) for member in members])
    for world, label in ((before, "b"), (after, "a")):
        (tmp_path / label).mkdir()
        fit_simulator(world.files, EXPERIMENT, "rnn", tmp_path / label)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / label).iterdir()})
    assert len(contents[0]) > EXPERIMENT.simulators.members
    assert contents[0] == contents[1]


# ---- who lets them in is told


@pytest.mark.parametrize("table", [table for table in CANARIES if table != "decisions"])
def test_what_is_built_passes(after: World, table: str) -> None:
    assert after.leaks(table) == []


def _known_later(rows: list[Row]) -> list[Row]:
    """Items numbered as of the end of the log."""
    return [row | {"item": 25} if row["item_id"] == "canary" else row for row in rows]


def _counted_later(rows: list[Row]) -> list[Row]:
    return [row | {"train_positives": row["train_positives"] + (row["item_id"] == "i3")} for row in rows]


def _coded_later(rows: list[Row]) -> list[Row]:
    return [row | {"category_code": 6} if row["item_id"] == "canary" else row for row in rows]


def _scaled_later(rows: list[Row]) -> list[Row]:
    return [row | {"features": [row["features"][0] - 0.5, 0.0]} for row in rows]


def _user_known_later(rows: list[Row]) -> list[Row]:
    return [row | {"user": 17} if row["user_id"] == "stranger" else row for row in rows]


def _user_counted_later(rows: list[Row]) -> list[Row]:
    return [row | {"train_sessions": row["train_sessions"] + (row["user_id"] == "u1")} for row in rows]


def _embedded_later(rows: list[Row]) -> list[Row]:
    return [*rows, {"item": 25, "item_id": "canary", "embedding": [0.0] * 4}]


def _not_embedded(rows: list[Row]) -> list[Row]:
    return rows[:-1]


def _shifted(rows: list[Row]) -> list[Row]:
    return [row | {"item": row["item"] % 24 + 1} for row in rows]


def _item_counted_later(rows: list[Row]) -> list[Row]:
    return [row | {"counters": [c if n != 1 else c + 1 for n, c in enumerate(row["counters"] or [])]} for row in rows]


def _page_counted(rows: list[Row]) -> list[Row]:
    """Counters that include the page at hand."""
    return [row | {"counters": [c if n % 15 else c + 1 for n, c in enumerate(row["counters"])]} for row in rows]


def _shown_later(rows: list[Row]) -> list[Row]:
    return [rows[0] | {"action": [25, 1, 2, 3]}, *rows[1:]]


def _liked_later(rows: list[Row]) -> list[Row]:
    return [rows[0] | {"history_items": [0, 0, 25]}, *rows[1:]]


def _of_a_stranger(rows: list[Row]) -> list[Row]:
    return [rows[0] | {"user": 17}, *rows[1:]]


LEAKS = [
    ("items", _known_later, "item canary has an index, but the training window does not show it"),
    ("items", _counted_later, r"item i3 counts \d+ impressions and \d+ positives, but the training window has"),
    ("items", _coded_later, "item canary has the code of a category that no item of the training window has"),
    ("items", _item_counted_later, r"item i\d+ counts \[\d+.0, .*, but before it lay \["),
    ("items", _scaled_later, "component 1 of the features has mean -0.5 and deviation 1.12 over the training window"),
    ("users", _user_known_later, r"the user of key \d+ has an index, but no session in the training window"),
    ("users", _user_counted_later, r"the user of key \d+ counts \d+ sessions, but the training window has \d+"),
    ("users", _scaled_later, "component 1 of the features has mean -0.5"),
    ("item_embeddings", _embedded_later, "item canary has an embedding, but the training window does not show it"),
    ("item_embeddings", _not_embedded, r"item i\d+ is shown in the training window, but has no embedding"),
    ("item_embeddings", _shifted, r"item i0 has index 1, but its embedding belongs to 2"),
    ("trajectories", _page_counted, r"slot \d of page \d in session -?\d+ counts \[\d+.0, .*, but before it lay \["),
    ("candidates", _page_counted, r"candidate \d+ of session -?\d+ counts \[\d+.0, .*, but before it lay \["),
    ("trajectories", _shown_later, r"item 25 in session -?\d+ is none that the training window shows"),
    ("trajectories", _liked_later, r"item 25 in session -?\d+ is none that the training window shows"),
    ("trajectories", _of_a_stranger, r"user 17 of session -?\d+ is none of the training window"),
]


@pytest.mark.parametrize(("table", "leak", "reason"), LEAKS, ids=[leak.__name__ for _, leak, _ in LEAKS])
def test_a_canary_that_is_let_in_is_told(
    after: World, tmp_path: Path, table: str, leak: Callable[[list[Row]], list[Row]], reason: str
) -> None:
    found = after.with_table(tmp_path, table, leak(after.rows(table))).leaks(table)
    assert found
    assert any(re.match(reason, sentence) for sentence in found), found


def test_a_session_of_validation_that_is_learnt_from_is_told(after: World, tmp_path: Path) -> None:
    later = next(row for row in after.rows("candidates") if row["split"] == "validation")
    rows = after.rows("trajectories")
    leaked = after.with_table(tmp_path, "trajectories", [*rows, rows[0] | {"session_id": later["session_id"]}])
    assert leaked.leaks("trajectories") == [f"session {later['session_id']} of the validation split is learnt from"]


def test_a_history_that_holds_the_session_itself_is_told(after: World, tmp_path: Path) -> None:
    rows = after.rows("candidates")
    session = next(row for row in rows if max(row["feedback"]) >= Feedback.CLICK and row["split"] == "test")
    liked = session["items"][int(np.argmax(session["feedback"]))]
    for own, told in ((liked, 1), (None, 0)):
        history = session["initial_items"][: 3 - told] + [own] * told
        leaked = [session | {"initial_items": history, "initial_feedback": [2] * len(history)}]
        found = after.with_table(tmp_path, "candidates", leaked).leaks("candidates")
        assert len(found) == told
        assert all(reason.startswith(f"session {session['session_id']} starts at ") for reason in found)


def test_feedback_that_came_after_the_session_began_is_no_history(tmp_path: Path) -> None:
    """A click from within the second session, on what the first one showed: known to nobody when the second began."""
    first, second = {"user_id": "u", "session_id": 1}, {"user_id": "u", "session_id": 2}
    world = World(tmp_path, {"decisions": []})
    for table, rows in {
        "sessions": [
            first | {"start_ts": at(1), "end_ts": at(2)}, second | {"start_ts": at(26), "end_ts": at(27)}
        ],
        "splits": [{"split": "test", "start_ts": at(0), "end_ts": at(48)}],
        "items": [{"item_id": "a", "item": 1}, {"item_id": "b", "item": 2}],
        "impressions": [
            first | {"item_id": "a", "position": 0, "feedback": "click", "positive_ts": at(1.5)},
            first | {"item_id": "b", "position": 1, "feedback": "click", "positive_ts": at(26.5)},
        ],
        "candidates": [second | {"initial_items": [1, 2], "initial_feedback": [2, 2]}],
    }.items():  # fmt: skip
        world = world.with_table(tmp_path, table, rows)
    assert world.leaks("candidates") == [
        "session 2 starts at 2024-01-02 02:00:00+00 with the history [1, 2], but what its user had liked before is [1]"
    ]


def test_late_feedback_enters_the_histories_when_it_comes(tmp_path: Path) -> None:
    """Some clicks come hours later, when their users may have begun another session."""
    rng = np.random.default_rng(0)
    late = [
        row | {"event_ts": row["event_ts"] + timedelta(hours=float(rng.uniform(1, 20)))}
        if row["event_type"] != "impression" and rng.random() < 0.1
        else row
        for row in log()
    ]
    world = build(tmp_path, [row for row in late if row["event_ts"] < START + END * DAY])
    starts = {row["session_id"]: row["start_ts"] for row in world.rows("sessions")}
    shown = [row for row in world.rows("impressions") if row["positive_ts"]]
    assert any(row["positive_ts"] > row["page_ts"] + timedelta(hours=1) for row in shown)
    assert len(starts) > 200
    assert world.leaks("candidates") == []


def _decisions(world: World, split: str) -> list[Row]:
    users = {row["session_id"]: row for row in world.rows("candidates")}
    return [
        {"session_id": row["session_id"], "user_key": row["user_key"], "step": 0,
         "initial_items": [0, *row["initial_items"]], "initial_feedback": [0, *row["initial_feedback"]]}
        for row in users.values() if row["split"] == split and row["initial_items"]
    ]  # fmt: skip


def test_policies_are_judged_on_test_sessions_of_their_own_users(after: World, tmp_path: Path) -> None:
    rows = _decisions(after, "test")
    assert after.with_table(tmp_path, "decisions", rows).leaks("decisions") == []
    other = after.with_table(tmp_path, "decisions", _decisions(after, "validation")[:1]).leaks("decisions")
    assert other == [f"session {_decisions(after, 'validation')[0]['session_id']} of the validation split is judged"]
    (reason,) = after.with_table(tmp_path, "decisions", [rows[0] | {"user_key": 5}]).leaks("decisions")
    assert reason.endswith("not of 5")


# ---- no ranker knows what comes


def _sessions(world: World) -> CandidateSessions:
    return load_sessions(world.files["candidates"], "test", _task(world), EXPERIMENT.history)


def _with_another_future(sessions: CandidateSessions) -> CandidateSessions:
    """What came of the candidates, dealt anew within each session; what had come before it stays."""
    noise = torch.rand(sessions.items.shape, generator=torch.Generator().manual_seed(9)).masked_fill(~sessions.mask, 2)
    order = noise.argsort(dim=1)
    dealt = {name: getattr(sessions, name).gather(1, order) for name in ("feedback", "rewards")}
    return replace(sessions, **dealt)


def _blind_agents() -> list[str]:
    """Registered agents that re-rank without a privilege; the one that needs a fitted user model is tested with it."""
    configs = {name: _config(name) for name in AGENTS if name != RANKS_BY_A_USER_MODEL}
    return [name for name, config in configs.items() if not config.privileges and "rerank" in config.legs]


def _config(name: str) -> AgentConfig:
    module, config = AGENTS[name].split(":")
    built: AgentConfig = getattr(import_module(module), config)()
    return built


def _assert_blind(agent: Any, config: AgentConfig, task: Task, sessions: CandidateSessions) -> None:
    other = _with_another_future(sessions)
    assert not torch.equal(sessions.feedback, other.feedback)
    one, same = (rerank(agent, config, task, found, "oneshot") for found in (sessions, other))
    assert torch.equal(one.order, same.order)
    assert torch.equal(one.scores, same.scores)
    one, same = (rerank(agent, config, task, found, "paged") for found in (sessions, other))
    assert torch.equal(one.order[:, : task.page_size], same.order[:, : task.page_size])


@pytest.mark.parametrize("name", _blind_agents())
def test_no_agent_ranks_by_the_future(before: World, name: str) -> None:
    task, config = _task(before), _config(name)
    _assert_blind(config.build(task, 11), config, task, _sessions(before))


def test_a_trained_agent_ranks_by_the_past_alone(before: World, tmp_path: Path) -> None:
    task, sessions = _task(before), _sessions(before)
    agent, config, _ = load_agent(_train(before, "goalrec_off", tmp_path), task)
    _assert_blind(agent, config, task, sessions)
    shown = [rerank(agent, config, task, found, "paged").order for found in (sessions, _with_another_future(sessions))]
    assert not torch.equal(*shown)  # after the first page it sees what came, and goes on otherwise


def test_a_ranker_that_sees_labels_would_be_found_out(before: World) -> None:
    task, config = _task(before), _config("ideal")
    with pytest.raises(AssertionError):
        _assert_blind(config.build(task, 11), config, task, _sessions(before))


def _first_test_sessions(world: World) -> set[int]:
    """Of each user: what came of later ones may be history by then."""
    tested = sorted((row for row in world.rows("candidates") if row["split"] == "test"), key=lambda r: r["start_ts"])
    return set({row["user_key"]: row["session_id"] for row in reversed(tested)}.values())


@pytest.fixture(scope="module")
def dealt_anew(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Another future, from the log on: half of the answers of the test window are gone, the rest is of another kind."""
    cut, rng = START + TEST * DAY, np.random.default_rng(2)
    events = []
    for row in log():
        answer = row["event_ts"] >= cut and row["event_type"] != "impression"
        if not answer or rng.random() < 0.5:
            events.append(row | ({"event_type": ("click", "purchase", "cart")[rng.integers(3)]} if answer else {}))
    return build(tmp_path_factory.mktemp("dealt"), events)


def test_another_future_of_the_log_leaves_the_first_test_session_of_every_user(
    before: World, dealt_anew: World, tmp_path: Path
) -> None:
    agent, config, _ = load_agent(_train(before, "goalrec_off", tmp_path), _task(before))
    ranked = []
    for world in (before, dealt_anew):
        sessions, first = _sessions(world), _first_test_sessions(world)
        found = rerank(agent, config, _task(before), sessions, "oneshot")
        keys = sessions.item_keys.gather(1, found.order).tolist()
        every = zip(sessions.session_id.tolist(), keys, found.scores.tolist(), strict=True)
        ranked.append({session: answer for session, *answer in every if session in first})
    assert len(ranked[0]) > 10
    assert ranked[0] == ranked[1]


def test_what_policies_are_judged_by_is_fitted_before_the_test_window(
    before: World, dealt_anew: World, tmp_path: Path
) -> None:
    """Propensities and the reward model, of pages whose past the two futures share."""
    found = []
    for name, world in (("before", before), ("dealt", dealt_anew)):
        out = tmp_path / name
        out.mkdir()
        build_decisions({table: world.files.get(table, []) for table in TABLES}, EXPERIMENT, out)
        judged = replace(world, files={**world.files, "decisions": [out / "decisions.parquet"]})
        assert judged.leaks("decisions") == []
        counted = judged.with_table(out / "later", "decisions", _page_counted(judged.rows("decisions")))
        assert all(re.match(r"candidate \d+ of page \d+ in session", reason) for reason in counted.leaks("decisions"))
        assert len(counted.leaks("decisions")) == 100
        first = _first_test_sessions(world)
        pages = [row for row in judged.rows("decisions") if row["session_id"] in first and row["step"] == 0]
        found.append(sorted(pages, key=lambda row: int(row["session_id"])))
    assert len(found[0]) > 10
    assert [row["feedback"] for row in found[0]] != [row["feedback"] for row in found[1]]
    for column in ("candidates", "behaviour", "behaviour_marginal", "first_slot", "reward_level", "reward_trend"):
        assert [row[column] for row in found[0]] == [row[column] for row in found[1]], column


# ---- the order of the splits


@pytest.mark.parametrize("overlap", [0, 1])
def test_splits_that_overlap_are_found_in_the_sessions_alone(tmp_path: Path, overlap: int) -> None:
    """Training sessions that go on into validation, by what the cut-offs themselves allow."""
    bounds = {"train": (0, 4), "validation": (4 - overlap, 6), "test": (6, 8)}
    splits = [{"split": name, "start_ts": at(a), "end_ts": at(b)} for name, (a, b) in bounds.items()]
    sessions = [{"session_id": n, "start_ts": at(n), "end_ts": at(n + 0.5)} for n in range(8)]
    files = [[write_rows(tmp_path / f"{table}.parquet", table, rows)]
             for table, rows in (("sessions", sessions), ("impressions", []), ("splits", splits))]  # fmt: skip
    found = check_splits(*files)
    assert len(found) == overlap
    assert all(reason.startswith("session 3 of the train split lasts until") for reason in found)


def test_every_canary_is_a_blocking_check_of_its_table() -> None:
    from pipeline.definitions import defs
    from pipeline.defs.assets import key

    graph = defs.resolve_asset_graph()
    checks = {check for check in graph.asset_check_keys if check.name == "no_leakage"}
    assert {check.asset_key for check in checks} == {key(table) for table in CANARIES}
    assert all(graph.get(check).blocking for check in checks)
