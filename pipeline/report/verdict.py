"""The verdict, by the rule of the evaluation protocol and never by eye.

"RL helps" is printed only where an agent beats itself at discount 0 *and* the best tuned supervised ranker,
significantly, in every user model that judges, and off-policy evaluation does not contradict it. The controls are known
by name: ``<agent>_discount_0`` is an agent with its future removed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.board import Board, Column, Estimate, names, role
from pipeline.report.format import number, p_value, value_with_interval

SUPERVISED = ("lambdamart", "gru4rec", "sasrec")
GREEDY = "greedy_simulator"
DISCOUNT_0 = "_discount_0"
SIGNIFICANCE = 0.05

Compare = Callable[[str, str], list[dict[str, Any]]]  # rows of the query paired_difference


@dataclass(frozen=True)
class Verdict:
    headline: str
    paragraph: str


def verdict(board: Board, unsupported: Mapping[str, str], compare: Compare) -> Verdict:
    """Apply the rule. ``compare(a, b)`` gives the paired differences of two agents."""
    missing = missing_controls(board, unsupported)
    if missing:
        reason = f"A verdict needs more than this run has. Missing: {'; '.join(missing)}."
        return Verdict("No verdict: controls not run", " ".join([reason, *measured(board)]))
    candidates = [agent for agent in board.agents if f"{agent}{DISCOUNT_0}" in board.agents]
    judges = board.main_columns("rollout")
    # Bonferroni over everything that is compared: each candidate with two controls in each judging user model.
    threshold = SIGNIFICANCE / (2 * len(candidates) * len(judges))
    winners = [agent for agent in candidates if _wins(board, agent, judges, compare, threshold)]
    rule = (
        "The rule: better than the same agent at discount 0 and than the best supervised ranker, "
        f"each at p < {number(threshold)} (5 % shared over the comparisons), in "
        f"{names(column.label.lower() for column in judges)}, and not contradicted by off-policy evaluation."
    )
    if winners:
        return Verdict(f"RL helps here: {names(winners)}", " ".join([rule, *measured(board)]))
    return Verdict("RL is not shown to help here", " ".join([f"No agent passes. {rule}", *measured(board)]))


def missing_controls(board: Board, unsupported: Mapping[str, str]) -> list[str]:
    """What the rule needs and this run does not have, in words."""
    missing = []
    if not any(agent.endswith(DISCOUNT_0) for agent in board.agents):
        missing.append("the same agents at discount 0")
    if absent := [agent for agent in SUPERVISED if agent not in board.agents]:
        missing.append(f"tuned supervised rankers ({names(absent)})")
    if GREEDY not in board.agents:
        missing.append("a greedy ranker on the training simulator's click probability")
    for leg, words in (("rollout", "roll-outs in an evaluation simulator"), ("ope", "off-policy estimates")):
        if not board.main_columns(leg):
            missing.append(f"{words} ({unsupported[leg]})" if leg in unsupported else words)
    return missing


def measured(board: Board) -> list[str]:
    """Sentences on what was measured, verdict or not."""
    if not board.columns:
        return ["Nothing was measured yet: the leaderboard has no rows."]
    column = board.columns[0]
    estimates = {estimate.agent: estimate for estimate in board.column(column)}
    sentences = []
    on_trial = [estimate for agent, estimate in estimates.items() if not role(agent, board.reference)]
    if on_trial:
        sentences.append(_best_on_trial(on_trial[0], column, board.reference, estimates))
    ahead, myopic = estimates.get("oracle_farsighted"), estimates.get("oracle_myopic")
    if ahead and myopic and myopic.value > 0:
        share = 100 * (ahead.value / myopic.value - 1)
        sentences.append(
            f"Of the two rankers that see the truth, the far-sighted one reaches {value_with_interval(ahead)} and the "
            f"myopic one {value_with_interval(myopic)}: looking ahead changes the value by {share:+.0f} % in this shop."
        )
    return sentences


def _best_on_trial(best: Estimate, column: Column, reference: str | None, estimates: Mapping[str, Estimate]) -> str:
    label, value = _lower_first(column.label), value_with_interval(best)
    sentence = f"By {label}, the best agent on trial is {best.agent} with {value}"
    if reference not in estimates or reference is None:
        return f"{sentence}."
    sentence += f"; the reference {reference} has {value_with_interval(estimates[reference])}"
    if best.difference is None:
        return f"{sentence}."
    apart = "significantly" if best.p_value is not None and best.p_value < SIGNIFICANCE else "not significantly"
    direction = "above" if best.difference > 0 else "below"
    return f"{sentence}, so it is {apart} {direction} it ({p_value(best.p_value)}, Holm over agents)."


def _wins(board: Board, agent: str, judges: list[Column], compare: Compare, threshold: float) -> bool:
    for judge in judges:
        supervised = [estimate.agent for estimate in board.column(judge) if estimate.agent in SUPERVISED]
        for control in (f"{agent}{DISCOUNT_0}", *supervised[:1]):
            if not _beats(compare(agent, control), judge, threshold) or _contradicted(board, agent, control):
                return False
        if not supervised:
            return False
    return True


def _beats(rows: list[dict[str, Any]], judge: Column, threshold: float) -> bool:
    from scipy.stats import norm

    for row in rows:
        if (row["leg"], row["setting"], row["metric"]) == tuple(judge) and row["standard_error"]:
            return bool(2 * norm.sf(row["difference"] / row["standard_error"]) < threshold)
    return False


def _contradicted(board: Board, agent: str, control: str) -> bool:
    """Some off-policy estimator puts the agent below the control with intervals apart."""
    for column in board.main_columns("ope"):
        ours, theirs = board.get(agent, column), board.get(control, column)
        if ours and theirs and ours.high is not None and theirs.low is not None and ours.high < theirs.low:
            return True
    return False


def _lower_first(text: str) -> str:
    return text if text[:2].isupper() else text[0].lower() + text[1:]
