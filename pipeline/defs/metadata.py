"""Plots and tables for Dagster's metadata: what a person wants to see beside a materialization."""

import json
import re
from collections import Counter
from typing import Any

import dagster as dg

from pipeline.plan import Plan


def events_metadata(plan: Plan) -> dict[str, Any]:
    """Events by period."""
    from pipeline.plan import row_count
    from pipeline.report.plots import bars

    periods = {part: row_count(plan.store.files("events", [part])) for part in plan.store.parts("events")}
    none = [float("nan")] * len(periods)
    plot = bars(list(periods), list(periods.values()), none, none, "Events by period", "events")
    return {"by_period": dg.MetadataValue.md(plot)}


def sessions_metadata(plan: Plan) -> dict[str, Any]:
    """How long sessions are."""
    from pipeline.report.plots import histogram
    from pipeline.warehouse import read_table

    lengths = read_table(plan.store.files("sessions"), "sessions", ["impressions"])["impressions"].to_numpy()
    return {"length": dg.MetadataValue.md(histogram(lengths, "Session length", "items shown"))} if len(lengths) else {}


def splits_metadata(plan: Plan) -> dict[str, Any]:
    from pipeline.warehouse import read_table

    return {"splits": dg.MetadataValue.md(markdown(read_table(plan.store.files("splits"), "splits").to_pylist()))}


def rejects_metadata(plan: Plan) -> dict[str, Any]:
    """Reasons without the rows and without the values that they quote: those are personal data."""
    from pipeline.warehouse import read_table

    found = read_table(plan.store.files("rejects"), "rejects", ["reason"])["reason"].to_pylist()
    reasons = Counter(re.sub(r"'[^']*'|\"[^\"]*\"", "…", reason) for reason in found)
    rows = [{"reason": reason, "rows": count} for reason, count in reasons.most_common(20)]
    return {"reasons": dg.MetadataValue.md(markdown(rows) if rows else "Nothing was refused.")}


def simulator_metadata(plan: Plan) -> dict[str, Any]:
    """Log-loss, AUC and calibration on the validation window, with the reliability of each head."""
    from pipeline.report.plots import reliability
    from pipeline.warehouse import read_table

    folder = plan.store.require("simulator").folder
    rows = read_table([folder / "simulator_quality.parquet"], "simulator_quality").to_pylist()
    curves = json.loads((folder / "config.json").read_text(encoding="utf-8"))["reliability"]
    plots = {
        f"reliability_{head}": dg.MetadataValue.md(reliability(predicted, observed, f"Reliability of {head}"))
        for head, (predicted, observed, _) in curves.items()
    }
    figures = {f"{row['head']}_{row['metric']}": row["value"] for row in rows}
    return {**figures, "quality": dg.MetadataValue.md(markdown(rows)), **plots}


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


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    if not rows:
        return ""
    head = list(rows[0])
    cells = [[str(row[name]).replace("|", r"\|") for name in head] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *cells])
