"""The observation encoder against a plain numpy reading of its formula, user by user."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models.base import StateBatch
from models.observation import CLIP, ObservationEncoder, item_vectors
from tests.models.builders import empty_state, make_state, make_task

TASK = make_task()


def reference(state: StateBatch, vectors: np.ndarray, decay: float) -> np.ndarray:
    rows = []
    for b in range(len(state)):
        history = [int(i) for i in state.history_items[b]]
        ages = range(len(history) - 1, -1, -1)
        known = [(vectors[i], decay**age) for i, age in zip(history, ages, strict=True) if i]
        skipped = [vectors[int(i)] for i in state.skipped_items[b] if i]
        none = np.zeros(vectors.shape[1])
        rows.append(
            np.concatenate(
                [
                    state.user_features[b].numpy(),
                    np.mean([v for v, _ in known], axis=0) if known else none,
                    np.average([v for v, _ in known], axis=0, weights=[w for _, w in known]) if known else none,
                    np.mean(skipped, axis=0) if skipped else none,
                    [float((state.page_feedback[b, -1] == code).sum()) / TASK.page_size for code in range(1, 6)],
                    [np.log(1 + int(state.pages_seen[b]))],
                ]
            )
        )
    return np.stack(rows)


@pytest.mark.parametrize("decay", [0.8, 0.3])
def test_the_observation_is_the_formula_s(decay: float) -> None:
    encode, state = ObservationEncoder(TASK, decay), make_state(12, TASK)
    expected = reference(state, item_vectors(TASK.catalogue).numpy().astype(np.float64), decay)
    observation = encode(state)
    assert observation.shape == (12, encode.width)
    assert observation.dtype == torch.float32
    np.testing.assert_allclose(observation.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_longer_padding_and_unknown_items_change_nothing() -> None:
    encode, state = ObservationEncoder(TASK), make_state(12, TASK)
    padded = {
        name: torch.nn.functional.pad(getattr(state, name), (3, 0))
        for name in ("history_items", "history_feedback", "skipped_items")
    }
    assert_close(encode(replace(state, **padded)), encode(state))
    unknown = replace(state, history_items=torch.zeros_like(state.history_items))  # positive feedback on item 0
    nothing = replace(unknown, history_feedback=torch.zeros_like(state.history_feedback))
    assert torch.equal(encode(unknown), encode(nothing))


def test_a_user_of_whom_nothing_is_known_is_all_zeros() -> None:
    encode = ObservationEncoder(TASK)
    assert torch.equal(encode(empty_state(2)), torch.zeros(2, encode.width))


def test_item_vectors_are_standardised_over_the_known_items_alone() -> None:
    catalogue = replace(TASK.catalogue, features=TASK.catalogue.features.clone())
    catalogue.features[1:, 0] = 1_000_000.1  # constant, and not exact in float32
    catalogue.features[1:, 1] = 0.0
    catalogue.features[7, 2] = 1e6
    vectors = item_vectors(catalogue)
    raw = catalogue.vectors[1:].double().numpy()
    width = catalogue.embeddings.shape[1]
    scores = (raw - raw.mean(0)) / np.where(raw.std(0) > 1e-3, raw.std(0), np.inf)
    np.testing.assert_allclose(vectors[1:, :width].numpy(), scores[:, :width].clip(-CLIP, CLIP), rtol=1e-4, atol=1e-5)
    assert torch.equal(vectors[0], torch.zeros(vectors.shape[1]))
    assert torch.equal(vectors[:, width : width + 2], torch.zeros(len(catalogue), 2))
    assert vectors[7, width + 2] == CLIP
