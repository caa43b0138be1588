"""The paragraph that the report opens with, from the rows of the table ``verdicts``; the rules are in evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BESIDE = ("best_agent", "needs_rl")  # verdicts whose numbers belong in the first paragraph


@dataclass(frozen=True)
class Verdict:
    headline: str
    paragraph: str


def verdict(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """The row of place 1, and after its reason what else must be known at once."""
    if not rows:
        return Verdict("No verdict: controls not run", "Nothing was measured yet: the table verdicts has no rows.")
    first, *rest = sorted(rows, key=lambda row: row["place"])
    said = [row["reason"] for row in rest if row["verdict"] in BESIDE]
    return Verdict(first["headline"], " ".join([first["reason"], *said]))
