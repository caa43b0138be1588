"""What all fitted user models share: their sessions, the training loop, calibration, and how feedback is drawn.

A fitted user model speaks in logits: of a positive answer to a shown item (head "click"), of leaving after a page
(head "exit"), and of which positive answer it is. ``fit`` trains them, ``calibrate`` corrects each head's logit l to
a·l + b on sessions that were not trained on (Platt scaling: a temperature and a base rate), and everything that acts
or is judged goes through the corrected probabilities.

Shapes: B users, K slots of a page, L shown items of a session, N history items, U user features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from models.base import Catalogue, StateBatch, Task, TensorBatch
from models.feedback import FIRST_POSITIVE, Feedback
from models.observation import item_vectors
from models.simulators.metrics import binary_metrics
from pipeline.errors import DataError, ModelError, NotFittedError

EMPTY = -1  # in the items of a page: a slot that shows nothing
KINDS = len(Feedback) - FIRST_POSITIVE  # positive answers: click, favorite, cart, purchase
EVALUATED_SESSIONS = 256  # at a time: bounds the memory of an evaluation
VOCABULARY = "vocabulary"  # in the weights: which catalogue they were fitted on
CALIBRATION = "calibration."  # in the weights: before a head's name, its (a, b)


@dataclass(frozen=True)
class SessionBatch(TensorBatch):
    """B whole sessions as lists of shown items from the first to the last, padded on the right."""

    user_features: Tensor  # [B, U] float32
    items: Tensor  # [B, L] int64, dense index, 0 = not seen in the training window
    feedback: Tensor  # [B, L] int64, Feedback codes; NONE pads
    page_end: Tensor  # [B, L] bool, the last item of a page
    terminated: Tensor  # [B] bool, the user left after the last page; False where a length cap cut the session
    initial_items: Tensor | None = None  # [B, N] int64, as in StateBatch: positives of earlier sessions
    session_id: Tensor | None = None  # [B] int64, of the log

    def __len__(self) -> int:
        return len(self.terminated)


class UserModel(Protocol):
    """A simulator of B users at once, on any device. A hidden state can be indexed by rows, like a tensor.

    All luck comes in as uniform ``draws``, a row a user (``models.hashing.uniforms`` makes them of a user's key and a
    counter), so what happens to a user depends neither on who else is in the batch nor on the device.
    """

    def reset_width(self) -> int: ...  # draws a user that reset() needs

    def step_width(self, slots: int) -> int: ...  # draws a user that step() needs for a page of so many slots

    def reset(self, state: StateBatch, draws: Tensor) -> Any: ...  # the hidden state of B users at a session's start

    def positive_probabilities(self, hidden: Any, items: Tensor) -> Tensor:
        """P(positive answer) [B, K] of each of ``items`` [B, K] if it alone were shown next."""
        ...

    def step(
        self, hidden: Any, items: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        """Show a page ``items`` [B, K], EMPTY where a slot shows nothing, and ask for the answers.

        Returns feedback codes [B, K], leave [B] bool, and the hidden state after the page. Users who are shown nothing
        leave. ``shift`` [B] is added to the logit of a positive answer.
        """
        ...


class UserModelConfig(BaseModel):
    """Settings of a user model; every field has a default and one line of meaning. An unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def build(self, task: Task) -> FittedUserModel:
        raise TypeError(f"{type(self).__name__} must define build(task)")


class FittedUserModel:
    """A user model with a network. A subclass gives the network, its loss, its logits, and the three calls above."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.vectors = item_vectors(task.catalogue).to(task.device)  # [I+1, V]
        self.calibration: dict[str, Tensor] = {}  # head → (a, b)
        self._network: Any = None

    def reset_width(self) -> int:
        return 0

    def step_width(self, slots: int) -> int:
        return 2 * slots + 1  # an answer and its kind for each slot, then whether to leave

    # ---- what a subclass gives

    def reset(self, state: StateBatch, draws: Tensor | None = None) -> Any:
        raise TypeError(f"{type(self).__name__} must define reset(state, draws)")

    def positive_probabilities(self, hidden: Any, items: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define positive_probabilities(hidden, items)")

    def step(
        self, hidden: Any, items: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        raise TypeError(f"{type(self).__name__} must define step(hidden, items, draws, shift)")

    def new_network(self) -> nn.Module:
        raise TypeError(f"{type(self).__name__} must define new_network()")

    def optimizer(self, network: Any) -> torch.optim.Optimizer:
        raise TypeError(f"{type(self).__name__} must define optimizer(network)")

    def loss(self, network: Any, batch: SessionBatch) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define loss(network, batch)")

    def logits(self, batch: SessionBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Labels and uncorrected logits: of "click", one a shown item (row by row), of "exit", one a page end."""
        raise TypeError(f"{type(self).__name__} must define logits(batch)")

    # ---- fitting and judging

    def fit(self, batches: Callable[[int], SessionBatch], steps: int, seed: int) -> Self:
        """Train afresh for ``steps`` gradient steps; ``batches(step)`` gives the sessions of one.

        The learning rate falls linearly to zero; gradients are clipped at norm 1.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.new_network().to(self.task.device).train()
            optimizer = self.optimizer(network)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
            for step in range(steps):
                loss = self.loss(network, batches(step).to(self.task.device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        self._network, self.calibration = network.eval(), {}
        return self

    def calibrate(self, sessions: SessionBatch) -> Self:
        """Fit each head's (a, b) on sessions that were not trained on; a head with one class only stays as it is."""
        self.calibration = {
            head: torch.tensor(_platt(labels, logits), dtype=torch.float32, device=self.task.device)
            for head, (labels, logits) in self._collect(sessions).items()
            if 0 < labels.sum() < len(labels)
        }
        return self

    def corrected(self, head: str, logits: Tensor) -> Tensor:
        """The head's logits a·l + b after calibration."""
        if head not in self.calibration:
            return logits
        slope, offset = self.calibration[head]
        corrected: Tensor = slope * logits + offset
        return corrected

    def predict(self, sessions: SessionBatch) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]:
        """Labels and calibrated probabilities of the head "click", one a shown item, and "exit", one a page.

        Shown items come in the order of ``sessions.items[sessions.feedback > 0]``; each answer is given all before it.
        """
        return {
            head: (labels.numpy(), self.corrected(head, logits.to(self.task.device)).sigmoid().cpu().double().numpy())
            for head, (labels, logits) in self._collect(sessions).items()
        }

    def evaluate(self, sessions: SessionBatch) -> dict[str, dict[str, float]]:
        """``binary_metrics`` of each head on logged sessions."""
        return {head: binary_metrics(labels, p) for head, (labels, p) in self.predict(sessions).items()}

    @torch.no_grad()
    def _collect(self, sessions: SessionBatch) -> dict[str, tuple[Tensor, Tensor]]:
        if not len(sessions):
            raise DataError("There are no sessions to evaluate the simulator on. Check the split's cut-offs.")
        rows = range(0, len(sessions), EVALUATED_SESSIONS)
        parts = [self.logits(sessions[slice(i, i + EVALUATED_SESSIONS)].to(self.task.device)) for i in rows]
        joined = {head: [torch.cat(sides).cpu() for sides in zip(*(part[head] for part in parts), strict=True)]
                  for head in parts[0]}  # fmt: skip
        return {head: (labels, logits) for head, (labels, logits) in joined.items()}

    # ---- weights

    @property
    def network(self) -> Any:
        if self._network is None:
            raise NotFittedError(f"{type(self).__name__} has no weights yet. Call fit() or load_state_dict() first.")
        return self._network

    def state_dict(self) -> dict[str, Tensor]:
        """The network's weights, the calibration, and a fingerprint of the vocabulary."""
        weights = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        calibration = {CALIBRATION + head: pair.clone() for head, pair in self.calibration.items()}
        return {**weights, **calibration, VOCABULARY: vocabulary_key(self.task.catalogue)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ModelError for weights of another shape or of another vocabulary."""
        name = type(self).__name__
        if VOCABULARY in state and not torch.equal(state[VOCABULARY].cpu(), vocabulary_key(self.task.catalogue)):
            raise ModelError(f"These weights of {name} were fitted on another vocabulary of items than this one of "
                             f"{len(self.task.catalogue) - 1}. Fit the simulator again on this log.")  # fmt: skip
        network = self.new_network().to(self.task.device)
        weights = {key: value for key, value in state.items() if key != VOCABULARY and not key.startswith(CALIBRATION)}
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"These weights do not fit {name}: {reason}. Load weights that were saved with "
                             "these settings and this catalogue.") from None  # fmt: skip
        self._network = network.eval()
        self.calibration = {
            key.removeprefix(CALIBRATION): value.to(self.task.device)
            for key, value in state.items()
            if key.startswith(CALIBRATION)
        }


def vocabulary_key(catalogue: Catalogue) -> Tensor:
    """A fingerprint of the items and what is known of them, [1] int64."""
    digest = hashlib.blake2b(catalogue.vectors.cpu().numpy().tobytes(), digest_size=7)
    digest.update(catalogue.category.cpu().numpy().tobytes())
    return torch.tensor([int.from_bytes(digest.digest(), "little")])


def sample_feedback(positive: Tensor, kinds: Tensor, draws: Tensor) -> Tensor:
    """Feedback codes [...] from P(positive) [...], P(kind | positive) [..., KINDS] and uniform ``draws`` [..., 2]."""
    return torch.where(draws[..., 0] < positive, sample_positive(kinds, draws[..., 1:]), int(Feedback.SKIP))


def sample_positive(kinds: Tensor, draws: Tensor) -> Tensor:
    """Feedback codes [...] of positive answers, from P(kind | positive) [..., KINDS] and uniform ``draws`` [..., 1]."""
    return FIRST_POSITIVE + (draws >= kinds.cumsum(dim=-1)[..., :-1]).sum(dim=-1)


def exit_labels(batch: SessionBatch) -> tuple[Tensor, Tensor]:
    """The page ends, where leaving is possible, and where the user left: two masks [B, L]. Checks the layout."""
    shown = batch.feedback > 0
    last = shown & (shown.cumsum(dim=1) == shown.sum(dim=1, keepdim=True))
    if not shown[:, 0].all() or (shown[:, 1:] & ~shown[:, :-1]).any():
        raise DataError("A session is empty or has a gap in its feedback. Pad sessions on the right, with code 0 only.")
    if (last & ~batch.page_end).any():
        raise DataError("The last item of a session does not end a page. Set page_end there.")
    return shown & batch.page_end, last & batch.terminated[:, None]


def page_numbers(batch: SessionBatch) -> Tensor:
    """The 0-based page of each shown item, [B, L] int64."""
    ends = batch.page_end.long()
    return ends.cumsum(dim=1) - ends


def check_page(items: Tensor, vocabulary: int) -> None:
    """Raise ModelError unless ``items`` [B, K] are dense indices below ``vocabulary``, or EMPTY."""
    if items.numel() and (int(items.max()) >= vocabulary or int(items.min()) < EMPTY):
        wrong = int(items.max()) if int(items.max()) >= vocabulary else int(items.min())
        raise ModelError(f"Item {wrong} is not in the vocabulary, which runs from 0 to {vocabulary - 1} "
                         f"({EMPTY} = empty slot). Give dense indices of the training window.")  # fmt: skip


def check_features(state: StateBatch) -> None:
    """Raise DataError for user features that are not finite."""
    wrong = ~state.user_features.isfinite().all(dim=1)
    if wrong.any():
        raise DataError(f"The features of {int(wrong.sum())} of {len(wrong)} users are not finite (first: row "
                        f"{int(wrong.nonzero()[0])}). Mend the users' table, or drop the feature.")  # fmt: skip


def _platt(labels: Tensor, logits: Tensor) -> tuple[float, float]:
    """a and b of σ(a·l + b) by maximum likelihood (Platt 1999); a slope below zero would turn the order around."""
    x = logits.double().numpy()[:, None]
    fitted = LogisticRegression(C=np.inf).fit(x, labels.numpy())
    return max(0.0, float(fitted.coef_[0, 0])), float(fitted.intercept_[0])
