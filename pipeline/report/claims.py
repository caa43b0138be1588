"""The report's sections on what may be said and what may not: verdicts, with the comparisons they rest on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.board import MAIN_METRIC, Column
from pipeline.report.format import number, p_value, percent, signed
from pipeline.report.tables import Cell, DataTable, interval_cell, number_cell

QUESTIONS = {
    "rl_helps": "Does RL help?",
    "best_agent": "Is the best ranker better than the reference?",
    "needs_rl": "Does this data need RL at all?",
    "legs_agree": "Do the legs agree?",
    "overestimation": "Do the critics expect too much?",
    "gate_predicts": "Do the user models rank as the truth does?",
}
FEW = 3  # answers about an agent or a world that are told outside of a table
ANSWERS = {True: "yes", False: "no", None: "open"}
CONTROLS = {
    "discount_0": "itself without a future",
    "supervised": "supervised control",
    "greedy_simulator": "greedy in the train side's user model",
    "reference": "reference",
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    answer: str  # yes, no or open
    headline: str
    reason: str


@dataclass(frozen=True)
class Topic:
    question: str
    claims: list[Claim]
    table: DataTable | None  # of those that are many: one an agent


def topics(verdicts: Sequence[Row]) -> list[Topic]:
    """The rows of the table ``verdicts`` by question, in their order."""
    found: dict[str, list[Row]] = {}
    for row in verdicts:
        found.setdefault(row["verdict"], []).append(row)
    return [_topic(question_of(verdict), rows) for verdict, rows in found.items()]


def question_of(verdict: str) -> str:
    return QUESTIONS.get(verdict) or f"{verdict[:1].upper()}{verdict[1:].replace('_', ' ')}?"


def comparisons_table(rows: Sequence[Row]) -> DataTable | None:
    """The table ``comparisons``: every difference with its interval, its size, its p and the spread of its seeds."""
    if not rows:
        return None
    head = ("Agent", "Against", "Where", "Value", "The other's", "Difference", "Significance", "Effect size",
            "Users better off", "Seeds")  # fmt: skip
    cells = [
        [
            Cell(row["agent"]),
            Cell(row["against"], CONTROLS.get(row["control"], row["control"] or "")),
            Cell(Column(row["leg"], row["setting"], row["metric"]).label),
            number_cell(row["value"], f"n = {number(row['n'])}"),
            number_cell(row["against_value"]),
            interval_cell(row["difference"], row["difference_low"], row["difference_high"], signed),
            Cell(p_value(row["p_adjusted"]), f"{p_value(row['p_value'])} alone", row["p_adjusted"], numeric=True),
            number_cell(row["effect_size"]),
            _share(row["share_better"]),
            number_cell(row["seeds"], _spread(row)),
        ]
        for row in rows
    ]
    note = ("Paired on the sessions or users that both have, seeds averaged first; intervals are 95 %, resampled over "
            "users. p is of a sign-flip test, Holm-adjusted over its family. The effect size is Cohen's d of the "
            "users' differences; under the seeds stands the range of their own differences.")  # fmt: skip
    return DataTable("Every comparison that a verdict rests on", [Cell(title) for title in head], cells, note)


def agreement_table(rows: Sequence[Row]) -> DataTable | None:
    """The table ``agreement``: how far two legs order the agents alike."""
    if not rows:
        return None
    cells = [
        [
            Cell(_label(row["first_leg"], row["first_setting"])),
            Cell(_label(row["second_leg"], row["second_setting"])),
            number_cell(row["tau"]) if row["tau"] is not None else Cell("–", "too few agents in common", numeric=True),
            Cell(p_value(row["p_value"]), sort=row["p_value"], numeric=True),
            number_cell(row["agents"]),
            number_cell(row["opposed"]),
        ]
        for row in rows
    ]
    head = ("One leg", "The other", "Kendall τ", "Significance", "Agents in both", "Pairs opposed")
    note = ("τ is 1 where both order the agents alike, −1 where one order is the other reversed. With few agents τ "
            "itself is uncertain: read it with its p. Opposed pairs have their intervals apart in both.")  # fmt: skip
    return DataTable("Rank correlation between the legs", [Cell(title) for title in head], cells, note)


def unsupported_table(
    legs: Mapping[str, str],
    user_models: Sequence[str],
    estimates: Sequence[tuple[str, str]],
    verdicts: Sequence[Row],
) -> DataTable:
    """All that this data or this run cannot support, in one place, each with its reason."""
    found = [(f"Leg: {leg}", f"{why[:1].upper()}{why[1:]}.") for leg, why in legs.items()]
    found += [("User model", sentence) for sentence in user_models]
    found += estimates
    found += [(question_of(row["verdict"]), f"{row['headline']}. {row['reason']}") for row in _open(verdicts)]
    rows = [[Cell(what), Cell(why)] for what, why in found]
    return DataTable("What this report cannot say, and why", [Cell("What"), Cell("Why")], rows)


def _open(verdicts: Sequence[Row]) -> list[Row]:
    """The questions without an answer; what is said of a single agent only where nothing is said of all."""
    unanswered = [row for row in verdicts if row["holds"] is None]
    of_all = {row["verdict"] for row in unanswered if not row["subject"]}
    return [row for row in unanswered if not row["subject"] or row["verdict"] not in of_all]


def _topic(question: str, rows: Sequence[Row]) -> Topic:
    by_subject = [row for row in rows if row["subject"]]
    folded = by_subject if len(by_subject) > FEW else []
    claims = [Claim(ANSWERS[row["holds"]], row["headline"], row["reason"]) for row in rows if row not in folded]
    return Topic(question, claims, _by_subject(question, folded) if folded else None)


def _by_subject(question: str, rows: Sequence[Row]) -> DataTable:
    cells = [
        [Cell(row["subject"]), Cell(ANSWERS[row["holds"]]), Cell(row["headline"]), Cell(row["reason"])] for row in rows
    ]
    head = ("Of", "Answer", "What may be said", "The numbers")
    return DataTable(f"{question} One by one", [Cell(title) for title in head], cells)


def _label(leg: str, setting: str) -> str:
    return Column(leg, setting, MAIN_METRIC.get(leg, "")).label


def _share(value: float | None) -> Cell:
    return number_cell(None) if value is None else Cell(percent(value), sort=value, numeric=True)


def _spread(row: Row) -> str:
    if row["seed_low"] is None or row["seed_high"] is None:
        return ""
    return f"{signed(row['seed_low'])} to {signed(row['seed_high'])}"
