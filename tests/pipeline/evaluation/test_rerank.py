from dataclasses import dataclass, replace
from math import comb

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from models.base import AgentConfig, Candidates, StateBatch, rank_page
from models.hashing import mix64
from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.evaluation import rerank as module
from pipeline.evaluation.rerank import (
    MODES,
    Mode,
    Ranked,
    ranking_table,
    rerank,
    scorable,
    session_table,
    validation_scores,
)
from pipeline.evaluation.sessions import CandidateSessions, load_sessions
from pipeline.experiment import History
from pipeline.schemas import RERANK_METRICS, SCHEMAS
from tests.models.builders import make_task
from tests.pipeline.evaluation.builders import (
    ByTaste,
    Constant,
    Ideal,
    InPages,
    LoggedOrder,
    Plain,
    Seeing,
    by_taste,
    make_rows,
    write,
)

TASK = make_task(rows=3, cols=2)
PAGE = TASK.page_size
KINDS = pytest.mark.parametrize("kind", [ByTaste, InPages])


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> CandidateSessions:
    files = write(tmp_path_factory.mktemp("candidates") / "c.parquet", make_rows(80))
    return load_sessions(files, "test", TASK, History(positives=4, pages=3))


def test_every_session_is_ranked_completely_and_padding_stays_behind(sessions: CandidateSessions) -> None:
    for mode in MODES:
        for kind in (ByTaste, InPages):
            ranked = rerank(by_taste(kind), Plain(), TASK, sessions, mode)
            assert torch.equal(ranked.order.sort(dim=1).values, torch.arange(35).expand(80, 35))
            assert torch.equal(sessions.mask.gather(1, ranked.order), sessions.mask)


def one_by_one(agent: ByTaste, sessions: CandidateSessions, mode: Mode) -> list[list[int]]:
    """Algorithm 4 for one session at a time, with a plain list of what is left."""
    orders = []
    for index in range(len(sessions)):
        session = sessions[index : index + 1].trimmed()
        state, left, order = session.state, list(range(int(session.lengths))), []
        while left:
            ids = torch.tensor([left])
            offered = Candidates(session.items[:, left], ids >= 0, session.tie[:, left])
            picks = [pick for pick in rank_page(agent, state, offered, TASK.rows, TASK.cols)[0].tolist() if pick >= 0]
            shown = [left[pick] for pick in picks]
            order += shown
            left = [candidate for candidate in left if candidate not in shown]
            if mode == "paged":
                empty = [0] * (PAGE - len(shown))
                items, feedback = session.items[0, shown].tolist(), session.feedback[0, shown].tolist()
                state = state.advance(torch.tensor([items + empty]), torch.tensor([feedback + empty]))
        orders.append(order)
    return orders


@KINDS
@pytest.mark.parametrize("mode", MODES)
def test_all_sessions_at_once_are_ranked_as_one_by_one(
    kind: type[ByTaste], mode: Mode, sessions: CandidateSessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAIRS", 400)  # several chunks
    agent = by_taste(kind)
    ranked = rerank(agent, Plain(), TASK, sessions, mode)
    lengths = sessions.lengths.tolist()
    found = [order[:length] for order, length in zip(ranked.order.tolist(), lengths, strict=True)]
    assert found == one_by_one(agent, sessions, mode)


def test_oneshot_of_an_item_wise_agent_is_the_order_of_its_scores(sessions: CandidateSessions) -> None:
    agent = by_taste()
    ranked = rerank(agent, Plain(), TASK, sessions, "oneshot")
    scores = agent.score(sessions.state, Candidates(sessions.items, sessions.mask, sessions.tie)).gather(
        1, ranked.order
    )
    assert torch.equal(ranked.scores[sessions.mask], scores[sessions.mask])
    assert ((ranked.scores[:, 1:] <= ranked.scores[:, :-1]) | ~sessions.mask[:, 1:]).all()


def altered(sessions: CandidateSessions, where: Tensor) -> CandidateSessions:
    """Other feedback (and rewards and logged positions) for the candidates ``where`` [S, L]."""
    feedback = torch.where(where & sessions.mask, 6 - sessions.feedback, sessions.feedback)
    rewards = torch.where(where & sessions.mask, 5 - sessions.rewards, sessions.rewards)
    positions = torch.where(where & sessions.mask, 999 - sessions.positions, sessions.positions)
    return replace(sessions, feedback=feedback, rewards=rewards, positions=positions)


def same(a: Ranked, b: Ranked, columns: slice = slice(None)) -> bool:
    pairs = ((a.order, b.order), (a.scores, b.scores))
    return all(x[:, columns].numpy().tobytes() == y[:, columns].numpy().tobytes() for x, y in pairs)


@KINDS
def test_another_future_leaves_what_precedes_it_byte_identical(
    kind: type[ByTaste], sessions: CandidateSessions
) -> None:
    agent = by_taste(kind)
    other = altered(sessions, sessions.mask)
    oneshot = [rerank(agent, Plain(), TASK, each, "oneshot") for each in (sessions, other)]
    assert same(*oneshot)
    paged = [rerank(agent, Plain(), TASK, each, "paged") for each in (sessions, other)]
    assert same(*paged, slice(PAGE))
    assert not same(*paged)  # the agent does listen


@KINDS
@pytest.mark.parametrize("page", [0, 1, 3])
def test_what_comes_of_a_page_changes_later_pages_only(
    kind: type[ByTaste], page: int, sessions: CandidateSessions
) -> None:
    agent = by_taste(kind)
    before = rerank(agent, Plain(), TASK, sessions, "paged")
    on_page = torch.zeros_like(sessions.mask).scatter(1, before.order[:, page * PAGE : (page + 1) * PAGE], True)
    after = rerank(agent, Plain(), TASK, altered(sessions, on_page), "paged")
    assert same(before, after, slice((page + 1) * PAGE))
    assert not same(before, after)


def test_ties_are_broken_by_the_hash_and_not_by_the_log(sessions: CandidateSessions) -> None:
    for mode in MODES:
        ranked = rerank(Constant(), Plain(), TASK, sessions, mode)
        ties = sessions.tie.gather(1, ranked.order)
        assert ((ties[:, 1:] > ties[:, :-1]) | ~sessions.mask[:, 1:]).all()


def test_the_ideal_ranker_reaches_the_ceiling_and_the_logged_order_is_the_log(sessions: CandidateSessions) -> None:
    scored = sessions.scored.numpy()
    for mode in MODES:
        table = session_table(sessions, rerank(Ideal(), Seeing(), TASK, sessions, mode), "ideal", 0)
        for metric in ("map", "mrr", "hit_1", "ndcg_10", "ndcg_reward_5", "ndcg_reward_40"):
            np.testing.assert_allclose(table[metric].drop_null().to_numpy(), np.ones(scored.sum()), err_msg=metric)
        ranked = rerank(LoggedOrder(), Seeing(), TASK, sessions, mode)
        positions = sessions.positions.gather(1, ranked.order)
        assert torch.equal(positions[sessions.mask], torch.arange(35).expand(80, 35)[sessions.mask])


class Recording(Constant):
    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        self.seen = candidates
        return super().score(state, candidates)


def test_labels_and_positions_are_shown_to_the_privileged_only(sessions: CandidateSessions) -> None:
    for mode in MODES:
        agent = Recording()
        rerank(agent, Plain(), TASK, sessions, mode)
        assert (agent.seen.rewards, agent.seen.logged_position, agent.seen.truth) == (None, None, None)
        rerank(agent, Seeing(), TASK, sessions, mode)
        assert agent.seen.rewards is not None
        assert agent.seen.logged_position is not None


class Random:
    def __init__(self, seed: int) -> None:
        self.seed = torch.tensor(seed)

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        return mix64(candidates.tie, self.seed).double()


def test_a_random_ranker_meets_its_expectation(sessions: CandidateSessions) -> None:
    seeds = range(60)

    def runs(mode: Mode) -> list[pa.Table]:
        ranked = [rerank(Random(seed), Plain(), TASK, sessions, mode) for seed in seeds]
        return [session_table(sessions, each, "random", seed) for seed, each in zip(seeds, ranked, strict=True)]

    tables = {mode: runs(mode) for mode in MODES}
    chosen = sessions[sessions.scored]
    pairs = list(zip(chosen.lengths.tolist(), chosen.positives.tolist(), strict=True))
    expected = {
        "precision_20": [r * min(20, n) / n / 20 for n, r in pairs],
        "recall_20": [min(20, n) / n for n, r in pairs],
        "hit_1": [r / n for n, r in pairs],
        "hit_5": [1 - comb(n - r, 5) / comb(n, 5) if n >= 5 else 1.0 for n, r in pairs],
        # The expected precision at the rank of a relevant item: itself, and the share of the others above it.
        "map": [np.mean([(1 + (k - 1) * (r - 1) / (n - 1)) / k for k in range(1, n + 1)]) for n, r in pairs],
    }
    for mode in MODES:
        for metric, values in expected.items():
            means = np.array([table[metric].drop_null().to_numpy().mean() for table in tables[mode]])
            assert abs(means.mean() - np.mean(values)) < 4 * means.std() / len(seeds) ** 0.5 + 1e-12, (mode, metric)


def test_the_rankings_hold_all_that_a_metric_needs(sessions: CandidateSessions) -> None:
    ranked = rerank(by_taste(), Plain(), TASK, sessions, "paged")
    table = ranking_table(sessions, ranked, "taste", 13)
    assert table.schema == SCHEMAS["rankings"]
    assert len(table) == int(sessions.mask.sum())
    frame = table.to_pandas()
    assert (frame.agent.unique(), frame.seed.unique(), frame["mode"].unique()) == (["taste"], [13], ["paged"])
    assert (frame.score == -frame["rank"]).all()
    first_relevant = frame[frame.feedback >= 2].groupby("session_id")["rank"].min()
    rerank_rows = session_table(sessions, ranked, "taste", 13).to_pandas().set_index("session_id")
    mrr = rerank_rows.mrr.dropna()
    np.testing.assert_allclose(mrr, 1 / first_relevant[mrr.index])
    ids = sessions.session_id.repeat_interleave(sessions.lengths).tolist()
    shown = set(zip(ids, sessions.item_keys[sessions.mask].tolist(), strict=True))
    assert set(zip(frame.session_id, frame.item_key, strict=True)) == shown


def test_counters_go_with_their_candidates_from_page_to_page(sessions: CandidateSessions) -> None:
    @dataclass
    class ByCounter:
        def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
            assert candidates.counters is not None
            return candidates.counters[..., 0]

    whole, paged = (rerank(ByCounter(), Plain(), TASK, sessions, mode).order for mode in MODES)
    assert torch.equal(whole, paged)
    assert sessions.lengths.max() > 2 * TASK.page_size
    ordered = sessions.counters[..., 0].gather(1, whole)
    assert (ordered.diff(dim=1) <= 0)[sessions.mask[:, 1:]].all()


def test_sessions_where_no_order_is_better_have_no_metrics(sessions: CandidateSessions) -> None:
    table = session_table(sessions, rerank(by_taste(), Plain(), TASK, sessions, "oneshot"), "taste", 13)
    assert table.schema == SCHEMAS["rerank"]
    frame = table.to_pandas()
    wanted = np.select(
        [frame.positives == 0, frame.positives == frame.candidates], ["no_positive", "all_positive"], "scored"
    )
    assert frame.status.tolist() == wanted.tolist()
    assert set(wanted) == {"scored", "no_positive", "all_positive"}
    for metric in RERANK_METRICS:
        assert (frame[metric].notna() == (frame.status == "scored")).all(), metric


def test_the_validation_score_is_the_paged_mean_of_ndcg_with_rewards(sessions: CandidateSessions) -> None:
    agent = by_taste()
    table = session_table(sessions, rerank(agent, Plain(), TASK, sessions, "paged"), "taste", 0)
    expected = table["ndcg_reward_20"].drop_null().to_numpy().mean()
    assert validation_scores(agent, Plain(), TASK, scorable(sessions)).mean() == pytest.approx(expected, rel=1e-12)
    assert validation_scores(Ideal(), Seeing(), TASK, scorable(sessions)).mean() == pytest.approx(1)


def test_a_validation_that_cannot_tell_rankers_apart_is_refused(sessions: CandidateSessions) -> None:
    with pytest.raises(DataError, match="No validation session has both positive and other feedback"):
        scorable(sessions[~sessions.scored])


class NotANumber(Constant):
    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        return super().score(state, candidates) / 0


class Misshapen(Constant):
    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        return super().score(state, candidates)[:, :1]


class Pages(Constant):
    """Shows given indices, whatever is offered."""

    def __init__(self, *page: int) -> None:
        self.page = page

    def rank_page(self, state: StateBatch, candidates: Candidates, rows: int, cols: int) -> Tensor:
        return torch.tensor(self.page).expand(len(candidates.items), -1)


class Oracle(AgentConfig):
    privileges = frozenset({"truth"})
    legs = frozenset({"rollout"})


@pytest.mark.parametrize(
    ("agent", "config", "mode", "error", "message"),
    [
        (NotANumber(), Plain(), "oneshot", ModelError, "NotANumber.score must give a number for each"),
        (NotANumber(), Plain(), "paged", ModelError, "NotANumber.score must give a number for each"),
        (Misshapen(), Plain(), "oneshot", ModelError, "Misshapen.score must give a number for each"),
        (Pages(0, 1, 2, 3, 4), Plain(), "paged", ModelError, "Pages.rank_page must fill"),
        (Pages(0, 1, 2, 3, 4, 4), Plain(), "paged", ModelError, "distinct unmasked candidates"),
        (Pages(0, 1, 2, 3, 4, 99), Plain(), "paged", ModelError, "distinct unmasked candidates"),
        (Pages(0, 1, 2, 3, 4, -1), Plain(), "oneshot", ModelError, "-1 only after the last of them"),
        (Pages(-1, 1, 2, 3, 4, 5), Plain(), "oneshot", ModelError, "-1 only after the last of them"),
        (Constant(), Oracle(), "paged", ConfigError, "Oracle cannot re-rank a log: its legs are"),
        (Constant(), Plain(), "page", ConfigError, "no re-ranking mode 'page'; known are: oneshot, paged"),
    ],
)
def test_what_is_no_ranking_is_refused(
    agent: Constant, config: AgentConfig, mode: Mode, error: type[Exception], message: str, sessions: CandidateSessions
) -> None:
    with pytest.raises(error, match=message):
        rerank(agent, config, TASK, sessions[sessions.lengths > PAGE], mode)


def test_a_masked_candidate_cannot_be_shown(sessions: CandidateSessions) -> None:
    short_and_long = torch.tensor([0, len(sessions) - 1])
    with pytest.raises(ModelError, match="distinct unmasked"):
        rerank(Pages(*range(PAGE)), Plain(), TASK, sessions[short_and_long], "paged")
