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
from pipeline.schemas import COUNTERS
from pipeline.splits import session_splits
from pipeline.warehouse import connect

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
_OFFERED = """
        create view counted as
        select
            concat('candidate ', n, ' of session ', session_id, ' at ', ts) as place,
            item_id,
            ts,
            offered.counters[n * {counters} + 1:(n + 1) * {counters}] as counters
        from offered
        join items using (item_key)"""
# What the checks that serve two tables read.
_VIEWS = {
    "items": """
        create view entities as select item > 0 as trained, features from items;
        create view counted as
        select concat('item ', item_id) as place, item_id, end_ts as ts, counters
        from items, splits
        where item > 0 and split = 'train'""",
    "users": 'create view entities as select "user" > 0 as trained, features from users',
    "trajectories": """
        create view shown as
        select
            session_id, page as step, item_id, impression_ts as ts, "row" * {cols} + col as slot
        from impressions;
        create view counted as
        select
            concat('slot ', slot, ' of page ', step, ' in session ', session_id) as place,
            item_id,
            ts,
            counters[slot * {counters} + 1:(slot + 1) * {counters}] as counters
        from trajectories
        join shown using (session_id, step)
        where relabel = 'original' and session_id in (select session_id from session_splits where split = 'train')""",
    "candidates": """
        create view histories as select session_id, initial_items, initial_feedback from candidates;
        create view offered as
        select session_id, start_ts as ts, unnest(item_keys) as item_key, unnest(range(len(items))) as n, counters
        from candidates;"""
    + _OFFERED,
    "decisions": """
        create view histories as select session_id, initial_items, initial_feedback from decisions where step = 0;
        create view offered as
        select session_id, ts, unnest(candidate_keys) as item_key, unnest(range(len(candidate_keys))) as n, counters
        from decisions
        join (
            select session_id, page as step, min(impression_ts) as ts from impressions group by session_id, page
        ) using (session_id, step);"""
    + _OFFERED,
}


def leaks(table: str, files: Callable[[str], Sequence[Path]], experiment: Experiment) -> list[str]:
    """What a published table of CANARIES knows of the future, a sentence each; an empty list is a pass.

    ``files`` gives the Parquet files of a table.
    """
    canary = CANARIES[table]
    params = {
        "history_before_session": {"positives": experiment.history.positives, "sessions": SAMPLE},
        "counters_before": {"sample": COUNTED},
    }
    with connect({name: files(name) for name in (*LOG, table, *canary.reads)}) as con:
        session_splits(con)
        if table in _VIEWS:
            view_facts(con)
            con.execute(_VIEWS[table].format(cols=experiment.sessions.cols, counters=len(COUNTERS)))
        return [reason for check in canary.checks for reason in run_check(con, check, params.get(check))]
