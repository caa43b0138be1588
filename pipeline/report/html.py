"""The report: one HTML file that works offline and asks the network for nothing, from ``results.duckdb`` alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.report.board import LEGS, Board, Column, names
from pipeline.report.charts import whiskers
from pipeline.report.claims import agreement_table, comparisons_table, topics, unsupported_table
from pipeline.report.curves import training
from pipeline.report.data import data_parts, file_names
from pipeline.report.goals import goals
from pipeline.report.off_policy import off_policy, unsupported_estimates
from pipeline.report.page import Chart, Section, render
from pipeline.report.rows import ways_back
from pipeline.report.simulators import failures, simulators
from pipeline.report.slices import slice_tables
from pipeline.report.tables import DataTable, all_metrics_table, leaderboard_table, plain_table, ranks_table
from pipeline.report.verdict import verdict
from pipeline.results import query, read
from pipeline.storage import write_atomically


@dataclass(frozen=True)
class Leg:
    name: str
    supported: bool
    text: str


def write_report(
    results: Path, target: Path, experiment_name: str, description: str = "", extra: Sequence[Section] = ()
) -> None:
    """Write the report of an experiment to ``target``. Raises StorageError when there are no results yet."""
    board = Board(read(results, "leaderboard"))
    unsupported = {row["leg"]: row["reason"] for row in _rows(read(results, "unsupported"))}
    verdicts = _rows(query(results, "verdicts"))
    agreement = _rows(query(results, "agreement"))
    estimates = query(results, "off_policy")
    gate = query(results, "simulator_gate")
    html = render(
        "report.html",
        kicker="Hindsight report",
        name=experiment_name,
        description=description,
        verdict=verdict(verdicts),
        board=board,
        leaderboard=leaderboard_table(board),
        legs=_legs(board, unsupported),
        ranks=ranks_table(board),
        agreements=agreement_table(agreement),
        disagreements=[row["sentence"] for row in agreement if row["opposed"]],
        topics=topics(verdicts),
        comparisons=comparisons_table(_rows(query(results, "comparisons"))),
        decoding=_decoding(query(results, "decoding")),
        not_supported=unsupported_table(unsupported, failures(gate), unsupported_estimates(estimates), verdicts),
        value_charts=_value_charts(board),
        rerank_chart=_rerank_chart(board),
        metrics=_metrics(board),
        scored=plain_table("Test sessions and what they could measure", query(results, "sessions_scored"), SCORED),
        goals=goals(query(results, "pareto")),
        off_policy=off_policy(estimates, read(results, "ope_calibration"), read(results, "ope_proof")),
        slices=slice_tables(query(results, "slices"), board.agents),
        training=training(query(results, "learning_curves"), query(results, "trials")),
        simulators=simulators(
            gate,
            read(results, "simulator_reliability"),
            query(results, "simulator_error"),
            query(results, "simulator_drop"),
            query(results, "rollouts"),
        ),
        data=data_parts(read(results, "data_report"), read(results, "ingest_counts")),
        files=_files(results),
        ways_back=ways_back(query(results, "ways_back")),
        provenance=_provenance(query(results, "provenance")),
        extra=[(part, None if part.table is None else plain_table(part.title, part.table)) for part in extra],
    )
    write_atomically(target, html)


SCORED = {"mode": "Mode", "sessions": "Sessions", "scored": "Scored", "no_positive": "No positive",
          "all_positive": "Only positives"}  # fmt: skip
SPLITS = {"split": "Split", "start_ts": "From (UTC)", "end_ts": "To, exclusive", "sessions": "Sessions kept",
          "dropped": "Dropped: they cross the end"}  # fmt: skip
DECODING = {"setting": "World", "decoder": "Decoder", "users": "Users", "return": "Return", "depth": "Pages",
            "share_of_lookahead": "Of what looking ahead earns"}  # fmt: skip
FILES = {"path": "Raw file", "kind": "Kind", "rows": "Rows", "size": "Bytes", "hash": "Hash"}


def _legs(board: Board, unsupported: Mapping[str, str]) -> list[Leg]:
    legs = []
    for leg, name in LEGS.items():
        columns = board.main_columns(leg)
        if columns:
            text = " ".join(f"{column.label}: {_extent(board, column)}." for column in columns)
        else:
            text = f"Not supported, because {unsupported.get(leg, 'it was not run and no reason was published')}."
        legs.append(Leg(name, bool(columns), text))
    other = [Leg(leg, False, f"Not supported, because {why}.") for leg, why in unsupported.items() if leg not in LEGS]
    return legs + other


def _extent(board: Board, column: Column) -> str:
    estimates = board.column(column)
    sizes = sorted({estimate.n for estimate in estimates})
    sizes_text = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    unit = {"rerank": "sessions", "rollout": "episodes"}.get(column.leg, "rows")
    return f"{len(estimates)} agents, n = {sizes_text} {unit} a seed"


def _value_charts(board: Board) -> list[Chart]:
    charts = []
    for column in board.main_columns("rollout"):
        estimates = board.column(column)
        figure = whiskers({column.label: estimates}, f"{column.label} (reward per session)", board.reference)
        charts.append(Chart(figure, f"{column.label} of {len(estimates)} agents with 95 % intervals"))
    return charts


def _rerank_chart(board: Board) -> Chart | None:
    series = {column.label: board.column(column) for column in board.main_columns("rerank")}
    if not series:
        return None
    figure = whiskers(series, "NDCG@20 with rewards as gains", board.reference)
    return Chart(figure, "NDCG@20 of every agent in both re-ranking modes with 95 % intervals")


def _metrics(board: Board) -> list[DataTable]:
    settings = dict.fromkeys((column.leg, column.setting) for column in board.every_column)
    return [
        all_metrics_table(board, leg, setting, f"{LEGS.get(leg, leg)}, {setting}: every metric")
        for leg, setting in settings
    ]


def _decoding(table: pa.Table) -> DataTable | None:
    return plain_table("Acting for the next page alone, and looking ahead", table, DECODING) if len(table) else None


def _files(results: Path) -> list[DataTable]:
    splits = read(results, "splits").sort_by("start_ts")
    return [
        plain_table("The cut-offs in time", splits, SPLITS),
        plain_table("The raw files", file_names(read(results, "manifest")), FILES),
    ]


def _provenance(table: pa.Table) -> DataTable:
    origins: dict[tuple[str, ...], list[str]] = {}
    for row in _rows(table):
        origin = tuple(str(row[name] or "unknown") for name in ("data_hash", "code_hash", "config_hash", "commit"))
        origins.setdefault((*origin, _versions(row["versions"])), []).append(row["agent"])
    columns = ("Data", "Code", "Config", "Commit", "Versions")
    rows = [(names(dict.fromkeys(agents)), len(agents), *origin) for origin, agents in origins.items()]
    data = {title: [row[k] for row in rows] for k, title in enumerate(("Agents", "Figures", *columns))}
    return plain_table("Where the figures come from", pa.table(data))


def _versions(text: str | None) -> str:
    """A JSON object of versions as words; any other text as it is."""
    try:
        found = json.loads(text or "null")
    except ValueError:
        return text or "unknown"
    return ", ".join(f"{key} {found[key]}" for key in sorted(found)) if isinstance(found, dict) else text or "unknown"


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    return list(table.to_pylist())
