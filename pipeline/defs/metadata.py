"""Plots and tables for Dagster's metadata: what a person wants to see beside a materialization."""

import re
from typing import Any

import dagster as dg

from pipeline.plan import Plan


def events_metadata(plan: Plan) -> dict[str, Any]:
    """Events by period."""
    from pipeline.plan import row_count
    from pipeline.report.plots import stacked

    periods = {part: row_count([path]) for part, path in plan.event_files().items()}
    plot = stacked({"events": periods}, "Events by period", "period", "events")
    return {"by_period": dg.MetadataValue.md(plot)}


def sessions_metadata(plan: Plan) -> dict[str, Any]:
    """How long sessions are."""
    from pipeline.report.plots import histogram
    from pipeline.warehouse import connect

    with connect({"sessions": plan.store.files("sessions")}) as con:
        found = con.sql("select impressions, count(*) as n from sessions group by all order by all").fetchnumpy()
    if not len(found["n"]):
        return {}
    plot = histogram(found["impressions"], "Session length", "items shown", counts=found["n"])
    return {"length": dg.MetadataValue.md(plot)}


def splits_metadata(plan: Plan) -> dict[str, Any]:
    from pipeline.warehouse import read_table

    return {"splits": dg.MetadataValue.md(markdown(read_table(plan.store.files("splits"), "splits").to_pylist()))}


def rejects_metadata(plan: Plan) -> dict[str, Any]:
    """Reasons without the rows and without the values that they quote: those are personal data."""
    from pipeline.warehouse import connect, run_sql

    with connect({"rejects": plan.store.files("rejects")}) as con:
        rows = run_sql(con, "queries/rejects_by_reason").limit(20).to_arrow_table().to_pylist()
    return {"reasons": dg.MetadataValue.md(markdown(rows) if rows else "Nothing was refused.")}


def data_report_metadata(plan: Plan) -> dict[str, Any]:
    """The tables and charts of the page, as Markdown."""
    from pipeline.report.data import data_topics
    from pipeline.report.plots import stacked
    from pipeline.warehouse import read_table

    found: dict[str, Any] = {"page": dg.MetadataValue.path(str(plan.data_page))}
    report, counts = (read_table(plan.store.files(table), table) for table in ("data_report", "ingest_counts"))
    for topic in data_topics(report, counts):
        for table in filter(None, [*topic.tables, topic.folded]):
            head = [cell.text for cell in table.head]
            rows = [dict(zip(head, (cell.text for cell in row), strict=True)) for row in table.rows]
            found[_key(table.caption)] = dg.MetadataValue.md(markdown(rows) or "No rows.")
        for bars in topic.bars:
            plot = stacked(bars.series, bars.title, bars.x_axis, bars.y_axis, bars.are_shares)
            found[_key(bars.title)] = dg.MetadataValue.md(plot)
    return found


def gate_metadata(plan: Plan) -> dict[str, Any]:
    """Every criterion with its limit, and the reliability of each user model's heads."""
    from pipeline.report.plots import reliability
    from pipeline.warehouse import read_table

    rows = read_table(plan.store.files("simulator_gate"), "simulator_gate").to_pylist()
    folder = plan.store.require("simulator_gate").folder
    bins = read_table([folder / "simulator_reliability.parquet"], "simulator_reliability").to_pandas()
    plots = {
        f"reliability_{name}_{head}": dg.MetadataValue.md(
            reliability(curve["predicted"], curve["observed"], f"Reliability of {name}'s {head}")
        )
        for (name, head), curve in bins[bins["group"] == "all"].groupby(["simulator", "head"])
    }
    return {"gate": dg.MetadataValue.md(markdown(rows)), **plots}


def agent_metadata(plan: Plan, name: str) -> dict[str, Any]:
    """The learning curve of the validation metric, a line a seed."""
    from pipeline.report.plots import lines
    from pipeline.warehouse import read_table

    path = plan.store.require("agents", name).folder / "training_log.parquet"
    log = read_table([path], "training_log").to_pandas()
    curve = log[log["metric"].str.startswith("validation")]
    if curve.empty:
        return {}
    series = {f"seed {seed}": (rows["step"], rows["value"]) for seed, rows in curve.groupby("seed")}
    best = float(curve.groupby("seed")["value"].max().mean())
    plot = lines(series, f"{name} on validation", "gradient step", "NDCG@20 with rewards, paged")
    return {"best_validation": best, "learning_curve": dg.MetadataValue.md(plot)}


def leaderboard_metadata(plan: Plan) -> dict[str, Any]:
    """The leaderboard, and its main column as bars."""
    from pipeline.report.plots import bars
    from pipeline.report.tables import terminal_table
    from pipeline.warehouse import read_table

    table = read_table(plan.store.files("leaderboard"), "leaderboard")
    board = table.to_pandas()
    plots = {}
    for leg, metric in (("rollout", "return"), ("rerank", "ndcg_reward_20")):
        rows = board[(board["leg"] == leg) & (board["metric"] == metric)].dropna(subset=["value"])
        for setting, found in rows.groupby("setting"):
            best = found.sort_values("value", ascending=False)
            plot = bars(best["agent"], best["value"], best["ci_low"], best["ci_high"], f"{metric} ({setting})", metric)
            plots[f"{leg}_{setting}"] = dg.MetadataValue.md(plot)
    return {"leaderboard": dg.MetadataValue.md(f"```\n{terminal_table(table)}\n```"), **plots}


def _key(title: str) -> str:
    """A title as the name of a metadata entry."""
    return re.sub(r"\W+", "_", title.lower()).strip("_")


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    if not rows:
        return ""
    head = list(rows[0])
    cells = [[str(row[name]).replace("|", r"\|") for name in head] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *cells])
