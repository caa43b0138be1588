import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from pipeline.embeddings import _co_occurrence, build_item_embeddings, embed, shifted_ppmi
from pipeline.experiment import Embeddings
from pipeline.splits import session_splits
from pipeline.warehouse import connect
from tests.pipeline.logs import at, read_rows, write_rows


def write_log(
    folder: Path, sessions: list[list[int]], feedback: str = "click", later: list[int] | None = None
) -> dict[str, Any]:
    """Sessions of items by dense index, all of training but ``later``, a session of the test split."""
    visits = [*sessions, *([later] if later else [])]
    starts = [at(0.01 * n) for n in range(len(sessions))] + ([at(30)] if later else [])
    shown = [
        {"session_id": n, "user_id": "u", "item_id": f"i{item}", "position": place, "feedback": feedback}
        for n, items in enumerate(visits)
        for place, item in enumerate(items)
    ]
    bounds = [("train", 0, 24), ("validation", 24, 28), ("test", 28, 48)]
    vocabulary = sorted({item for items in sessions for item in items})
    tables: dict[str, list[dict[str, Any]]] = {
        "impressions": shown,
        "sessions": [{"session_id": n, "user_id": "u", "start_ts": ts, "end_ts": ts} for n, ts in enumerate(starts)],
        "splits": [{"split": name, "start_ts": at(start), "end_ts": at(end)} for name, start, end in bounds],
        "items": [{"item_id": f"i{item}", "item": item} for item in vocabulary] + [{"item_id": "i999", "item": 0}],
    }
    return {name: [write_rows(folder / f"{name}.parquet", name, rows)] for name, rows in tables.items()}


def vectors(folder: Path, inputs: dict[str, Any], **settings: Any) -> np.ndarray:
    build_item_embeddings(**inputs, settings=Embeddings(**settings), out=folder / "embeddings.parquet")
    rows = read_rows(folder / "embeddings.parquet")
    assert [row["item"] for row in rows] == list(range(1, len(rows) + 1))
    return np.array([row["embedding"] for row in rows])


def two_shelves(seed: int, sessions: int = 200) -> list[list[int]]:
    """Sessions that take five of items 1..10, or five of items 11..20."""
    rng = np.random.default_rng(seed)
    return [list(10 * (n % 2) + 1 + rng.permutation(10)[:5]) for n in range(sessions)]


def test_shifted_ppmi_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (6, 6))
    counts = np.triu(counts, 1) + np.triu(counts, 1).T
    expected = np.zeros((6, 6))
    for i in range(6):
        for j in range(6):
            if counts[i, j]:
                pmi = np.log(counts[i, j] * counts.sum() / (counts[i].sum() * counts[j].sum()))
                expected[i, j] = max(0.0, pmi - np.log(1.5))
    np.testing.assert_allclose(shifted_ppmi(csr_array(counts), 1.5).toarray(), expected, atol=1e-12)


def test_embeddings_equal_a_dense_svd_up_to_their_scale() -> None:
    rng = np.random.default_rng(1)
    matrix = np.abs(rng.normal(size=(12, 12)))
    matrix = matrix + matrix.T
    u, s, _ = np.linalg.svd(matrix)
    expected = u[:, :4] * np.sqrt(s[:4])
    found = embed(csr_array(matrix), 4, seed=0)
    similarity = expected @ expected.T
    scale = (found @ found.T)[0, 0] / similarity[0, 0]
    np.testing.assert_allclose(found @ found.T, scale * similarity, atol=1e-6)
    assert np.linalg.norm(found, axis=1).mean() == pytest.approx(1)


def test_items_of_the_same_sessions_lie_together(tmp_path: Path) -> None:
    found = vectors(tmp_path, write_log(tmp_path, two_shelves(2)), dim=4)
    similarity = found @ found.T
    same = np.equal.outer(np.arange(20) // 10, np.arange(20) // 10)
    assert similarity[same].mean() > 0.5
    assert abs(similarity[~same].mean()) < 0.05


def test_later_sessions_leave_no_trace(tmp_path: Path) -> None:
    sessions = two_shelves(3)
    before = vectors(tmp_path / "before", write_log(tmp_path / "before", sessions), dim=4)
    after = vectors(tmp_path / "after", write_log(tmp_path / "after", sessions, later=[1, 11, 2, 12, 999]), dim=4)
    np.testing.assert_array_equal(before, after)


def test_a_session_gives_no_more_items_than_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.embeddings.MAX_SESSION_ITEMS", 2)
    found = vectors(tmp_path, write_log(tmp_path, [[1, 2, 3], [2, 1, 3]]), dim=2)
    norms = np.linalg.norm(found, axis=1)
    assert norms[2] == 0
    assert (norms[:2] > 0).all()


def test_sessions_count_for_what_they_show_and_again_for_what_was_positive(tmp_path: Path) -> None:
    inputs = write_log(tmp_path, [[1, 2, 3], [2, 1]], feedback="skip")
    rows = read_rows(inputs["impressions"][0])
    for row in rows[:2]:  # items 1 and 2 of the first session
        row["feedback"] = "click"
    inputs["impressions"] = [write_rows(tmp_path / "impressions.parquet", "impressions", rows)]
    with connect(inputs) as con:
        session_splits(con)
        counts = _co_occurrence(con, 3)
    assert counts.toarray().tolist() == [[0, 3, 1], [3, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(("sessions", "message"), [([[1, 2]], "rank 2"), ([[1], [2]], "all item embeddings are zero")])
def test_a_small_vocabulary_is_padded_with_zeros(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sessions: list[list[int]], message: str
) -> None:
    with caplog.at_level(logging.INFO):
        found = vectors(tmp_path, write_log(tmp_path, sessions), dim=8)
    assert found.shape == (2, 8)
    assert np.isfinite(found).all()
    assert not found[:, 2:].any()
    assert message in caplog.text


def test_the_same_log_gives_the_same_bytes(tmp_path: Path) -> None:
    inputs = write_log(tmp_path, two_shelves(5))
    outs = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for out in outs:
        build_item_embeddings(**inputs, settings=Embeddings(dim=4), out=out)
    assert outs[0].read_bytes() == outs[1].read_bytes()
