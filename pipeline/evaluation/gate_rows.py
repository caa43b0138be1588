"""The rows that the gate's numbers are computed from: each judged prediction, and each session with its twins.

Shapes: S sessions, L shown items, n predictions.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from models.simulators.base import SessionBatch, exit_labels
from pipeline.evaluation.twins import Flags, Floats, Twins
from pipeline.schemas import SCHEMAS


def answer_rows(
    name: str,
    head: str,
    sessions: SessionBatch,
    judged: Tensor,
    labels: Flags,
    p: Floats,
    groups: NDArray[np.int64] | None = None,
) -> pa.Table:
    """``simulator_answers`` of one head, [n] rows, one where ``judged`` [S, L] is true; exits have no ``groups``."""
    columns = {
        "simulator": pa.repeat(name, len(p)),
        "head": pa.repeat(head, len(p)),
        "session_id": _ids(sessions)[judged.nonzero()[:, 0].numpy()],
        "row": np.arange(len(p)),
        "group": pa.nulls(len(p), pa.string()) if groups is None else groups.astype(str),
        "predicted": p,
        "observed": labels,
    }
    return pa.table(columns, schema=SCHEMAS["simulator_answers"])


def twin_rows(name: str, twins: Twins, sessions: SessionBatch) -> pa.Table:
    """``simulator_twins``, a row a twin."""
    columns = {
        "simulator": pa.repeat(name, len(twins.user)),
        "session_id": _ids(sessions)[twins.user],
        "twin": np.arange(len(twins.user)),
        "logged_pages": exit_labels(sessions)[0].sum(dim=1).numpy()[twins.user],
        "logged_ended": sessions.terminated.numpy()[twins.user],
        "simulated_pages": twins.pages,
        "simulated_ended": twins.left,
        "logged_rate": twins.logged_rate,
        "simulated_rate": twins.rate,
    }
    return pa.table(columns, schema=SCHEMAS["simulator_twins"])


def _ids(sessions: SessionBatch) -> NDArray[np.int64]:
    """The log's ids of the sessions [S]; where they are not known, their numbers."""
    return np.arange(len(sessions)) if sessions.session_id is None else sessions.session_id.cpu().numpy()
