"""Hindsight measurements and goals against a hand-worked table, a brute-force loop and the properties of §4.4."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.feedback import FIRST_POSITIVE, Feedback
from pipeline.errors import ConfigError, DataError
from pipeline.hindsight import (
    Pages,
    fit_pca,
    goals,
    horizons,
    measurement_names,
    measurements,
    scale,
    session_goals,
    session_measurements,
)

EMPTY, SKIP, CLICK, BUY = Feedback.NONE, Feedback.SKIP, Feedback.CLICK, Feedback.PURCHASE
EMBEDDINGS = np.array([[0, 0], [1, 0], [0, 1], [2, 2], [-1, 3]], np.float32)


def shop() -> Pages:
    """A session of three pages (the second has an empty slot) and one of a single page without a click."""
    return Pages(
        offsets=np.array([0, 3, 4]),
        items=np.array([[1, 2], [3, 0], [4, 1], [2, 3]]),
        feedback=np.array([[CLICK, SKIP], [BUY, EMPTY], [SKIP, CLICK], [SKIP, SKIP]]),
        terminated=np.array([False, False, True, True]),
        embeddings=EMBEDDINGS,
    )


def random_pages(seed: int, sessions: int = 12, size: int = 4, d_e: int = 3) -> Pages:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, sessions)
    rows = lengths.sum()
    feedback = rng.choice([0, 1, 1, 1, 1, 2, 3, 4, 5], (rows, size))
    embeddings = rng.normal(size=(20, d_e)).astype(np.float32)
    embeddings[0] = 0
    items = np.where(feedback > 0, rng.integers(0, 20, (rows, size)), 0)
    terminated = np.zeros(rows, bool)
    terminated[lengths.cumsum() - 1] = rng.random(sessions) < 0.8  # the others were cut
    return Pages(np.r_[0, lengths.cumsum()], items, feedback, terminated, embeddings)


def final(pages: Pages) -> np.ndarray:
    return horizons(pages.offsets, "final", np.random.default_rng(0))


def by_loops(pages: Pages, horizon: np.ndarray) -> np.ndarray:
    """The definition, read aloud: one item at a time."""
    n_embedding = pages.embeddings.shape[1]
    expected = np.zeros((*pages.items.shape, 6 + n_embedding))
    for first, end in zip(pages.offsets[:-1], pages.offsets[1:], strict=True):
        for row in range(first, end):
            for slot, code in enumerate(pages.feedback[row]):
                if code == EMPTY:
                    continue
                later = range(row + 1, first + horizon[row] + 1)
                seen = [(pages.items[row, slot], code)]
                seen += [(i, f) for r in later for i, f in zip(pages.items[r], pages.feedback[r], strict=True) if f]
                liked = [pages.embeddings[i] for i, f in seen if f >= FIRST_POSITIVE]
                expected[row, slot] = [
                    code >= FIRST_POSITIVE,
                    pages.terminated[row],
                    len(liked),
                    len(liked) / len(seen),
                    1 + len(later),
                    sum(f == BUY for _, f in seen),
                    *(np.mean(liked, axis=0) if liked else np.zeros(n_embedding)),
                ]
    return expected


def test_names_follow_the_components_of_the_measurement() -> None:
    names = measurement_names(2)
    assert names == (
        "click", "exit", "clicks", "click_ratio", "steps", "purchases", "embedding_0", "embedding_1",
    )  # fmt: skip
    assert measurements(shop(), final(shop())).shape == (4, 2, len(names))


def test_measurements_match_the_hand_worked_table() -> None:
    # click, exit, clicks, ratio, steps, purchases, mean embedding of the clicked items
    expected = [
        [[1, 0, 3, 3 / 4, 3, 1, 4 / 3, 2 / 3], [0, 0, 2, 2 / 4, 3, 1, 3 / 2, 1]],
        [[1, 0, 2, 2 / 3, 2, 1, 3 / 2, 1], [0] * 8],
        [[0, 1, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 1, 0]],
        [[0, 1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0, 0]],
    ]
    np.testing.assert_allclose(measurements(shop(), final(shop())), expected, rtol=1e-6)


def test_an_earlier_horizon_forgets_the_pages_after_it() -> None:
    measured = measurements(shop(), np.array([1, 1, 2, 0]))
    np.testing.assert_allclose(measured[0, 1], [0, 0, 1, 1 / 2, 2, 1, 2, 2], rtol=1e-6)


@pytest.mark.parametrize("strategy", ["final", "future", "random"])
def test_measurements_equal_the_brute_force_loop(strategy: str) -> None:
    for seed in range(5):
        pages = random_pages(seed)
        horizon = horizons(pages.offsets, strategy, np.random.default_rng(seed))
        np.testing.assert_allclose(measurements(pages, horizon), by_loops(pages, horizon), rtol=1e-5, atol=1e-6)


def test_whole_sessions_count_every_page_and_speak_of_the_first() -> None:
    expected = [[1, 0, 3, 3 / 5, 3, 1, 4 / 3, 2 / 3], [0, 1, 0, 0, 1, 0, 0, 0]]
    np.testing.assert_allclose(session_measurements(shop()), expected, rtol=1e-6)


def test_the_original_goal_is_one_for_the_session_and_points_at_what_it_reached() -> None:
    deviation = np.arange(1, 9, dtype=np.float32)
    goal, skip = session_goals(shop(), deviation)
    reached = session_measurements(shop())[0] / deviation
    np.testing.assert_allclose(goal[:3], np.tile(reached / np.linalg.norm(reached), (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(goal[3] @ goal[3], 1, rtol=1e-6)
    assert not skip.any()


def test_horizons_reach_where_their_strategy_allows() -> None:
    offsets = np.array([0, 4, 5])
    rng = np.random.default_rng(3)
    drawn = {s: np.array([horizons(offsets, s, rng) for _ in range(300)]) for s in ("final", "future", "random")}
    reached = {s: [sorted(set(column.tolist())) for column in values.T] for s, values in drawn.items()}
    assert reached["final"] == [[3], [3], [3], [3], [0]]
    assert reached["future"] == [[1, 2, 3], [2, 3], [3], [3], [0]]
    assert reached["random"] == [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3], [0]]
    np.testing.assert_allclose((drawn["random"][:, 0] == 0).mean(), 0.25, atol=0.08)


def test_the_scale_is_the_deviation_over_shown_items_and_one_where_nothing_varies() -> None:
    pages = random_pages(1)
    measured = measurements(pages, final(pages))
    measured[..., 4] = 3.1
    mask = pages.feedback > 0
    deviation = scale(measured, mask)
    np.testing.assert_allclose(deviation[:4], measured[mask].astype(np.float64).std(axis=0)[:4], rtol=1e-6)
    assert deviation[4] == 1
    np.testing.assert_array_equal(scale(measured[:0], mask[:0]), np.ones(9))


vectors = st.lists(st.floats(-5, 5, width=32), min_size=8, max_size=8).map(np.array)
scales = st.lists(st.floats(0.1, 10), min_size=8, max_size=8).map(np.array)


@given(measured=vectors, deviation=scales, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_hindsight_goal_maximises_the_achieved_measurement(
    measured: np.ndarray, deviation: np.ndarray, seed: int
) -> None:
    goal, skip = goals(measured, deviation)
    if skip:
        assert not goal.any()
        return
    normal = measured / deviation
    others = np.random.default_rng(seed).normal(size=(500, 8))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(goal), 1, rtol=1e-6)
    np.testing.assert_allclose(goal @ normal, np.linalg.norm(normal), rtol=1e-5)
    assert (others @ normal).max() <= goal @ normal + 1e-5 * np.linalg.norm(normal)


@given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_scaling_all_measurements_leaves_the_goals_unchanged(seed: int, factor: float) -> None:
    pages = random_pages(seed)
    measured = measurements(pages, final(pages))
    mask = pages.feedback > 0
    scaled = (measured * factor).astype(np.float64)
    before, _ = goals(measured, scale(measured, mask))
    after, _ = goals(scaled, scale(scaled, mask))
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_a_measurement_of_nothing_is_skipped() -> None:
    goal, skip = goals(np.array([[0.0] * 8, [1.0] + [0.0] * 7, [1e-12] + [0.0] * 7]), np.ones(8))
    assert skip.tolist() == [True, False, True]
    np.testing.assert_array_equal(goal[:, 0], [0, 1, 0])
    pages = shop()
    _, skipped = goals(measurements(pages, final(pages)), np.ones(8))
    np.testing.assert_array_equal(skipped, pages.feedback == EMPTY)


def test_pca_keeps_the_variance_and_has_a_fixed_sign() -> None:
    rng = np.random.default_rng(5)
    embeddings = np.vstack([np.zeros(6), rng.normal(size=(40, 6)) * [5, 3, 2, 1, 0.5, 0.1]])
    reduced = fit_pca(embeddings, 3)
    centred = embeddings[1:] - embeddings[1:].mean(axis=0)
    variances = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    np.testing.assert_allclose(np.diag(reduced[1:].T @ reduced[1:]), variances[:3], rtol=1e-4)
    assert not reduced[0].any()
    order = np.r_[0, 1 + rng.permutation(40)]
    np.testing.assert_allclose(fit_pca(embeddings[order], 3), reduced[order], atol=1e-4)


@pytest.mark.parametrize(("rows", "d_e"), [(1, 4), (2, 4), (9, 0), (9, 10)])
def test_pca_of_few_items_or_more_axes_than_there_are_fills_up_with_zeros(rows: int, d_e: int) -> None:
    embeddings = np.vstack([np.zeros(6), np.random.default_rng(0).normal(size=(rows - 1, 6))])
    reduced = fit_pca(embeddings, d_e)
    assert reduced.shape == (rows, d_e)
    np.testing.assert_allclose(reduced[:, min(rows - 1, 6) :], 0, atol=1e-6)


def broken(**changes: object) -> Pages:
    pages = shop()
    return Pages(**{**vars(pages), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: broken(offsets=np.array([0, 3])), DataError, "rise from 0 to the 4 rows"),
        (lambda: broken(offsets=np.array([0, 2, 2, 4])), DataError, "rise from 0"),
        (lambda: broken(feedback=np.ones((4, 3), int)), DataError, r"\(4, 3\)"),
        (lambda: broken(terminated=np.zeros(3, bool)), DataError, r"terminated \(4,\)"),
        (lambda: broken(embeddings=EMBEDDINGS[:3]), DataError, "embeddings for 0 to 2"),
        (lambda: measurements(shop(), np.array([2, 2, 2, 1])), DataError, "after its session's end"),
        (lambda: measurements(shop(), np.array([2, 0, 2, 0])), DataError, "before its own page"),
        (lambda: horizons(np.array([0, 1]), "finel", np.random.default_rng(0)), ConfigError, "did you mean 'final'"),
    ],
)
def test_input_that_does_not_fit_is_refused(action, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        action()


def test_no_pages_give_no_measurements() -> None:
    none = Pages(np.zeros(1, int), np.zeros((0, 2), int), np.zeros((0, 2), int), np.zeros(0, bool), EMBEDDINGS)
    assert measurements(none, final(none)).shape == (0, 2, 8)
    assert session_goals(none, np.ones(8))[0].shape == (0, 8)
