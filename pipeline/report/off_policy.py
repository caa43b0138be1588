"""The report's section on leg 3: what the log alone says of each agent, and how far that may be believed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.report.board import estimator_name, names
from pipeline.report.charts import Dot, reliability, whiskers
from pipeline.report.format import number, signed
from pipeline.report.page import Chart
from pipeline.report.tables import Cell, DataTable, interval_cell, number_cell, plain_table

RECOMMENDED = (("page", "sn_iips"), ("page", "sn_cascade_dr"))  # least variance for little bias, one each of two kinds
PROPENSITIES = {
    "logged": "The log says with which probability each item was shown: its propensities are used as they are.",
    "logged by slot": "The log says with which probability each item was shown in its slot, but not given the slots "
    "above it: only estimators that need no more are used.",
    "fitted": "The log does not say with which probability an item was shown, so a behaviour policy was fitted on "
    "earlier pages; every estimate rests on it, and its reliability is drawn below.",
}
POOLS = {
    "logged": "What else each page could have shown is logged, too.",
    "catalogue": "What else a page could have shown is taken to be the whole catalogue.",
    "sampled": "What else a page could have shown is not logged: other items were sampled to stand for it.",
}
CLAIMS = {
    "coverage": "95 % intervals cover the truth",
    "rmse_slope": "The error falls with the root of the log's size",
    "on_policy": "On the log's own policy it equals the mean",
    "doubly_robust": "It stays unbiased with one of its two models wrong",
    "selection": "It ranks policies as the truth does",
    "selection_regret": "What is lost by taking the policy that it puts first",
    "bias": "It has no bias",
    "visibly_biased": "It is biased where both of its models are wrong",
    "supported": "It gives a verdict where the log supports one",
    "refused": "It gives no verdict where the log does not support one",
}
EVERY = {"agent": "Agent", "setting": "Of", "estimator": "Estimator", "value": "Value", "ci_low": "from",
         "ci_high": "to", "gain": "Gain on the log", "n": "n", "seeds": "Seeds", "ess": "Effective sample size",
         "tail_index": "Tail index", "max_weight": "Largest weight", "mean_weight": "Mean weight",
         "mean_weight_error": "its error", "clipped_share": "Clipped", "overlap": "Overlap",
         "counts": "Counts"}  # fmt: skip
PROOFS = {"claim": "Claim", "setting": "Of", "estimator": "Estimator", "target": "Policy", "value": "Measured",
          "least": "At least", "most": "At most", "truth": "True value", "n": "Pages a log", "logs": "Logs",
          "holds": "Holds"}  # fmt: skip

Row = Mapping[str, Any]


@dataclass(frozen=True)
class OffPolicy:
    words: list[str]  # what the propensities and the candidates are
    chart: Chart | None
    table: DataTable | None  # the recommended estimators
    every: DataTable | None
    calibration: Chart | None
    proofs: DataTable | None
    proved: str  # how many claims hold


def off_policy(estimates: pa.Table, calibration: pa.Table, proofs: pa.Table) -> OffPolicy:
    """The section, from the query ``off_policy`` and the tables ``ope_calibration`` and ``ope_proof``."""
    rows = estimates.to_pylist()
    recommended = [row for row in rows if (row["setting"], row["estimator"]) in RECOMMENDED]
    every = [row | {"estimator": estimator_name(row["estimator"]), "counts": _counts(row)} for row in rows]
    claims = [row | {"claim": _claim(row["claim"]), "estimator": estimator_name(row["estimator"] or "")}
              for row in proofs.to_pylist()]  # fmt: skip
    return OffPolicy(
        words=_words(rows),
        chart=_chart([row for row in recommended if row["supported"]]),
        table=_table(sorted(recommended, key=lambda row: not row["supported"])),  # what counts comes first
        every=plain_table("Every estimator", pa.Table.from_pylist(every), EVERY) if every else None,
        calibration=_calibration(calibration.to_pylist()),
        proofs=plain_table("Claims about the estimators", pa.Table.from_pylist(claims), PROOFS) if claims else None,
        proved=f"{sum(bool(row['holds']) for row in claims)} of {len(claims)} claims hold.",
    )


def unsupported_estimates(estimates: pa.Table) -> list[tuple[str, str]]:
    """What recommended estimates do not count, and why; reasons that differ in their figures alone are one."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in estimates.to_pylist():
        if (row["setting"], row["estimator"]) in RECOMMENDED and not row["supported"]:
            reason = re.sub(r"[\d.,]*\d", "…", row["reason"]) or "no reason was published"
            found.setdefault((estimator_name(row["estimator"]), reason), []).append(row["agent"])
    return [(f"Off-policy, {estimator}: {names(agents)}", reason) for (estimator, reason), agents in found.items()]


def _words(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    told = [PROPENSITIES.get(row["propensities"]) for row in rows] + [POOLS.get(row["pool"]) for row in rows]
    temperatures = names(sorted({number(row["temperature"]) for row in rows}))
    smoothed = (
        f"A ranker is smoothed into a Plackett–Luce policy of temperature {temperatures} over its standardised scores: "
        "a log hardly ever holds the one page that a deterministic ranker would show. The values are of these policies."
    )
    return [*dict.fromkeys(sentence for sentence in told if sentence), smoothed]


def _chart(rows: Sequence[Row]) -> Chart | None:
    series: dict[str, list[Dot]] = {}
    for row in rows:
        dot = Dot(row["agent"], row["value"], (row["ci_low"], row["ci_high"]))
        series.setdefault(estimator_name(row["estimator"]), []).append(dot)
    if not series:
        return None
    figure = whiskers(series, "estimated reward of a page", None)
    return Chart(figure, f"Supported off-policy estimates by {names(series)}, with 95 % intervals")


def _table(rows: Sequence[Row]) -> DataTable | None:
    if not rows:
        return None
    head = ("Agent", "Estimator", "Counts", "Value", "Gain on the log", "Effective sample size", "Tail index",
            "Mean weight", "Overlap")  # fmt: skip
    cells = [
        [
            Cell(row["agent"]),
            Cell(estimator_name(row["estimator"])),
            Cell(_counts(row)),
            _if_supported(row, interval_cell(row["value"], row["ci_low"], row["ci_high"])),
            _if_supported(row, interval_cell(row["gain"], row["gain_low"], row["gain_high"], signed)),
            number_cell(row["ess"], f"of {number(row['n'])}", 0),
            number_cell(row["tail_index"]),
            number_cell(row["mean_weight"], f"± {number(row['mean_weight_error'])}"),
            number_cell(row["overlap"]),
        ]
        for row in rows
    ]
    note = ("Of several seeds: the mean value, the widest interval, the worst diagnostics. The mean weight must be 1 "
            "within its error; above a tail index of 0.5 the interval itself cannot be trusted.")  # fmt: skip
    return DataTable("What the log alone says of each agent", [Cell(title) for title in head], cells, note)


def _if_supported(row: Row, cell: Cell) -> Cell:
    return cell if row["supported"] else number_cell(None)


def _counts(row: Row) -> str:
    return "yes" if row["supported"] else f"no: {row['reason']}" if row["reason"] else "no"


def _calibration(bins: Sequence[Row]) -> Chart | None:
    if not bins:
        return None
    points = [(row["predicted"], row["observed"]) for row in sorted(bins, key=lambda row: row["bin"])]
    figure = reliability({"behaviour policy": points}, "being shown")
    return Chart(figure, "Said and observed probability of being shown", "The policy that made the log, as it is known")


def _claim(name: str) -> str:
    return CLAIMS.get(name) or name[:1].upper() + name[1:].replace("_", " ")
