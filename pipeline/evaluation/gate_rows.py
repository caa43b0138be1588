"""The rows that the gate's numbers are computed from: each judged prediction, and each session with its twins.

Shapes: S sessions, L shown items, n predictions.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from models.simulators.base import SessionBatch, exit_labels
from models.simulators.feedback import CLASSES
from pipeline.evaluation.twins import Flags, Floats, Twins
from pipeline.schemas import SCHEMAS


def answer_rows(
    name: str,
    head: str,
    sessions: SessionBatch,
    judged: Tensor,
    labels: Flags,
    p: Floats,
    **known: ArrayLike,
) -> pa.Table:
    """``simulator_answers`` of one head, [n] rows, one where ``judged`` [S, L] holds; ``known`` [n] are the others."""
    columns = {
        "simulator": pa.repeat(name, len(p)),
        "head": pa.repeat(head, len(p)),
        "session_id": _ids(sessions)[judged.nonzero()[:, 0].numpy()],
        "row": np.arange(len(p)),
        "predicted": p,
        "observed": labels,
        **known,
    }
    schema = SCHEMAS["simulator_answers"]
    others = {column.name: pa.nulls(len(p), column.type) for column in schema if column.name not in columns}
    return pa.table(columns | others, schema=schema)


def class_rows(name: str, sessions: SessionBatch, labels: NDArray[np.int64], p: Floats) -> pa.Table:
    """``simulator_answers`` of the head "answer", [3n]: the class [n] of each answer, and its chances [n, 3]."""
    shown = sessions.feedback > 0
    return pa.concat_tables(
        answer_rows(name, "answer", sessions, shown, labels == code, p[:, code], group=np.repeat(kind, len(p)))
        for code, kind in enumerate(CLASSES)
    )


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
