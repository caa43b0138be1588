"""Leg 3 on the leaderboard: the headline estimates of each agent, its seeds together, with paired differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from pipeline.evaluation.off_policy import EMPTY
from pipeline.evaluation.ope.estimate import Terms, clustered_error, t_quantile
from pipeline.evaluation.ope.logged import LoggedSlates
from pipeline.evaluation.ope.slates import SLATE_ESTIMATORS
from pipeline.evaluation.significance import holm
from pipeline.plan import PRODUCTION
from pipeline.trajectories import ragged
from pipeline.warehouse import read_table

HEADLINES = ("sn_iips", "sn_cascade_dr")  # of setting page: one's assumption is on slots, the other's on those above


def board_rows(files: Sequence[Path], reference: str) -> list[dict[str, Any]]:
    """The leaderboard's rows of leg 3: the headline estimators of the agents whose every seed is supported.

    ``files`` are those of ``ope``, beside which lie the pages. Seeds are averaged in value and influence, so that the
    interval speaks of users alone.
    """
    rows: list[dict[str, Any]] = []
    for name in HEADLINES:
        found = {agent: terms for path in files for agent, terms in _supported(path, name)}
        if set(found) <= {PRODUCTION}:
            continue  # the log's own value says nothing with nobody beside it
        scored = [_board_row(agent, terms, found.get(reference), reference) for agent, terms in sorted(found.items())]
        adjusted = holm([np.nan if row["p_value"] is None else row["p_value"] for row in scored])
        rows += [
            row | {"setting": f"page/{name}", "p_value": None if np.isnan(p) else float(p)}
            for row, p in zip(scored, adjusted, strict=True)
        ]
    return rows


def refusal(ope: pa.Table) -> str:
    """Why no agent has a headline estimate, as a clause after "because"; empty where one has."""
    rows = [row for row in ope.to_pylist() if row["estimator"] in HEADLINES and row["agent"] != PRODUCTION]
    if not rows:
        return "no logged test page has known candidates, or the validation window has none to fit a model on"
    if any(row["supported"] for row in rows):
        return ""
    (kind, count), *_ = Counter(row["reason"].partition(":")[0] for row in rows).most_common()
    example = next(row for row in rows if row["reason"].startswith(kind))
    return (
        f"{kind} ({count} of {len(rows)} estimates; {example['agent']} by {example['estimator']}: {example['reason']})"
    )


def _supported(path: Path, estimator: str) -> Iterator[tuple[str, list[Terms]]]:
    """The agent of a file of ``ope`` and its seeds' terms, if every seed is supported."""
    rows = [r for r in read_table([path], "ope").to_pylist() if (r["setting"], r["estimator"]) == ("page", estimator)]
    if rows and all(row["supported"] for row in rows):
        pages = read_table([path.with_name("ope_pages.parquet")], "ope_pages")
        seeds = pages["seed"].to_numpy()
        terms = [SLATE_ESTIMATORS[estimator].terms(published_slates(pages.filter(pa.array(seeds == row["seed"]))))
                 for row in rows]  # fmt: skip
        yield rows[0]["agent"], terms


def published_slates(pages: pa.Table) -> LoggedSlates:
    """Rows of ``ope_pages`` as the estimators read them; empty slots, which change nothing, count as slots."""
    n = len(pages)
    lists = {name: ragged(pages[name])[0].reshape(n, -1) for name in EMPTY}
    return LoggedSlates(mask=np.ones_like(lists["reward"], dtype=bool), user_key=pages["user_key"].to_numpy(), **lists)


def _board_row(agent: str, seeds: list[Terms], reference: list[Terms] | None, name: str) -> dict[str, Any]:
    values = np.array([terms.value for terms in seeds])
    influence = np.mean([terms.influence() for terms in seeds], axis=0)
    error, users = clustered_error(influence, seeds[0].user_key)
    half, value = t_quantile(users) * error, float(values.mean())
    row: dict[str, Any] = {
        "agent": agent,
        "leg": "ope",
        "metric": "value",
        "value": value,
        "ci_low": value - half,
        "ci_high": value + half,
        "n": len(influence),
        "users": users,
        "seeds": len(seeds),
        "seed_sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "p_value": None,
    }
    if reference is None or agent == name:
        return row
    other = float(np.mean([terms.value for terms in reference]))
    paired = influence - np.mean([terms.influence() for terms in reference], axis=0)
    error, _ = clustered_error(paired, seeds[0].user_key)
    half, gap = t_quantile(users) * error, value - other
    p_value = float(2 * stats.t.sf(abs(gap) / error, users - 1)) if error > 0 else None
    return row | {"against": name, "difference": gap, "difference_low": gap - half, "difference_high": gap + half,
                  "p_value": p_value}  # fmt: skip
