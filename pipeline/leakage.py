"""No leakage: what is fitted knows the training window alone, and what is ranked knows its user's past alone.

Each check recounts from the log what a published table may know, and gives a sentence for whatever it knows beyond
that. A canary (an item or a user that exists only after the cut-off) that is let in anywhere is therefore named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.checks import run_check
from pipeline.counters import view_facts
from pipeline.experiment import Experiment
from pipeline.splits import session_splits
from pipeline.warehouse import connect, create_table

SAMPLE = 5_000  # sessions whose histories are recounted
COUNTED = 200  # items whose counters are recounted
LOG = ("impressions", "sessions", "splits")


@dataclass(frozen=True)
class Canary:
    """What is held against the log of one table."""

    claim: str
    checks: tuple[str, ...]  # under sql/checks
    reads: tuple[str, ...] = ()  # tables besides the log and itself


CANARIES = {
    "items": Canary("Indices, counts, codes and scales of items know the training window alone.",
                    ("training_vocabulary", "training_scale", "counters_before")),
    "users": Canary("Indices, counts and scales of users know the training window alone.",
                    ("training_users", "training_scale")),
    "item_embeddings": Canary("The items that training showed have an embedding, and no others.",
                              ("training_embeddings",), ("items",)),
    "trajectories": Canary("Agents learn from training sessions, of the items that those showed, as they were then.",
                           ("training_trajectories", "counters_before"), ("items", "users")),
    "candidates": Canary("A session's history and counters hold what had come before it started.",
                         ("history_before_session", "counters_before"), ("items",)),
    "decisions": Canary("Policies are judged on test sessions, with histories and counters from before them.",
                        ("test_decisions", "history_before_session", "counters_before"), ("items",)),
}  # fmt: skip
# What the checks that serve two tables read.
_VIEWS = {
    "items": "create view entities as select item > 0 as trained, features from items",
    "users": 'create view entities as select "user" > 0 as trained, features from users',
    "candidates": "create view histories as select session_id, initial_items, initial_feedback from candidates",
    "decisions": "create view histories as select session_id, initial_items, initial_feedback from decisions "
    "where step = 0",
}


def leaks(table: str, files: Callable[[str], Sequence[Path]], experiment: Experiment) -> list[str]:
    """What a published table of CANARIES knows of the future, a sentence each; an empty list is a pass.

    ``files`` gives the Parquet files of a table.
    """
    canary = CANARIES[table]
    params = {
        "history_before_session": {"positives": experiment.history.positives, "sessions": SAMPLE},
        "counters_before": {"sample": COUNTED},
        "counted_trajectories": {"sample": COUNTED, "cols": experiment.sessions.cols},
        "counted_candidates": {"sample": COUNTED},
        "counted_decisions": {"sample": COUNTED},
    }
    with connect({name: files(name) for name in (*LOG, table, *canary.reads)}) as con:
        session_splits(con)
        if table in _VIEWS:
            con.execute(_VIEWS[table])
        if "counters_before" in canary.checks:
            view_facts(con)
            counted = f"counted_{table}"
            create_table(con, "counted", f"staging/{counted}", params.get(counted))
        return [reason for check in canary.checks for reason in run_check(con, check, params.get(check))]
