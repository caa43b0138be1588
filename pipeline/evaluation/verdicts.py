"""What may be said of a run: by the rules of the evaluation protocol, never by eye, each with the numbers it rests on.

rl_helps: an agent beats itself at discount 0 *and* every supervised ranker in every world that judges, each at an
adjusted p below 5 % over users and with each of its seeds alone (the luck of training is not in p), and no supported
off-policy estimate of whole sessions puts it below one of them with the intervals apart. (Beating each is stricter than
beating the best, and needs no choice of the best on the test window. Estimates of a slot or a page are of rewards at
once, which foresight may give up for later ones: they are told, and contradict nothing.) Where controls, judges or
seeds are missing there is no verdict, and the row says what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.comparisons import RULE, SIGNIFICANCE, SUPERVISED, comparisons, on_trial
from pipeline.evaluation.significance import Interval, ratio_of_means
from pipeline.experiment import MYOPIC, RANKS_BY_A_USER_MODEL
from pipeline.report.board import MAIN_METRIC, Agreement, Board, Column, Estimate, estimator_name, names, role
from pipeline.report.format import interval, number, p_value, signed, value_with_interval
from pipeline.schemas import SCHEMAS
from pipeline.warehouse import read_table, write_parquet

if TYPE_CHECKING:
    from pipeline.plan import Job

INPUTS = ("leaderboard", "rerank", "rollout", "ope", "decoding")
RERANK_COLUMNS = ["session_id", "user_key", "agent", "seed", "mode", MAIN_METRIC["rerank"]]
ROLLOUT_COLUMNS = ["setting", "agent", "seed", "user_key", "return", "depth"]
SEEDS = 3  # below which the luck of training is not known
SHOWN_PAIRS = 5  # of agents that two legs order oppositely, and of other lists in a sentence
SHOWN_COLUMNS = 6  # pairs of columns in the sentence on the legs; the table agreement has all
TRUTH = "truth"
SESSION = "session"  # the setting of off-policy estimates that are of whole sessions
NOT_RUN = "controls not run"
NOT_JUDGED = "no user model may judge"
ROLL_OUTS = "roll-outs in an evaluation simulator"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    verdict: str
    subject: str  # an agent, a world, or empty
    holds: bool | None  # None: no verdict
    headline: str
    reason: str


def build_verdicts(job: Job) -> None:
    """Write ``verdicts`` and, beside it, ``comparisons`` and ``agreement``."""
    experiment = job.experiment
    columns = {"rerank": RERANK_COLUMNS, "rollout": ROLLOUT_COLUMNS}  # of the large tables
    found = {name: read_table(job.files(name), name, columns.get(name)) for name in INPUTS}
    beside = [path.with_name("unsupported.parquet") for path in job.files("leaderboard")]
    unsupported = {row["leg"]: row["reason"] for row in read_table(beside, "unsupported").to_pylist()}
    resamples, seed = experiment.budgets().bootstrap, experiment.seeds[0]
    compared = comparisons(found["rerank"], found["rollout"], experiment.reference, resamples, seed)
    board = Board(found["leaderboard"])
    claims = verdicts(board, compared, found["rollout"], found["ope"], found["decoding"], unsupported, resamples, seed)
    for name, table in (("comparisons", compared), ("agreement", agreement(board)), ("verdicts", claims)):
        write_parquet(job.folder("verdicts") / f"{name}.parquet", name, table.to_batches())


def agreement(board: Board) -> pa.Table:
    """The table ``agreement``: how far every two columns of the main metrics order the agents alike."""
    rows = []
    for found in board.agreements():
        opposed = board.disagreements(found.first, found.second)
        rows.append(
            {"first_leg": found.first.leg, "first_setting": found.first.setting, "second_leg": found.second.leg,
             "second_setting": found.second.setting, "agents": found.n, "tau": found.tau, "p_value": found.p_value,
             "opposed": len(opposed), "sentence": _agreement_sentence(found, opposed)}
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMAS["agreement"])


def verdicts(
    board: Board,
    compared: pa.Table,
    rollout: pa.Table,
    ope: pa.Table,
    decoding: pa.Table,
    unsupported: Mapping[str, str],
    resamples: int = 1_000,
    seed: int = 0,
) -> pa.Table:
    """The table ``verdicts``; the row with place 1 is the answer that the report opens with.

    ``compared`` is the table ``comparisons``; the others are the published tables of their names, of which ``rollout``
    needs the columns of ``decoding`` alone, with agents for decoders.
    """
    claims = [
        *rl_helps(board, compared.to_pylist(), OffPolicy(ope), unsupported),
        *best_agent(board),
        *needs_rl(rollout, decoding, resamples, seed),
        *legs_agree(board),
        *overestimation(board),
        *gate_predicts(board),
    ]
    rows = [vars(claim) | {"place": place} for place, claim in enumerate(claims, start=1)]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["verdicts"])


# ---- does RL help?


class OffPolicy:
    """The supported estimates of the table ``ope``, the mean over an agent's seeds; all of them must be supported."""

    def __init__(self, ope: pa.Table) -> None:
        keys = ["agent", "setting", "estimator"]
        means = ope.group_by(keys, use_threads=False).aggregate(
            [("supported", "all"), ("ci_low", "mean"), ("ci_high", "mean")]
        )
        self.intervals = {
            tuple(row[key] for key in keys): (row["ci_low_mean"], row["ci_high_mean"])
            for row in means.to_pylist()
            if row["supported_all"] and row["ci_low_mean"] is not None
        }

    def common(self, agent: str, control: str) -> list[tuple[str, str]]:
        """Settings and estimators that speak of both."""
        known = [key[1:] for key in self.intervals if key[0] == agent]
        return sorted((s, e) for s, e in known if (control, s, e) in self.intervals)

    def below(self, agent: str, control: str, whole: bool) -> list[str]:
        """Clauses on the estimates that put the agent below the control with intervals apart.

        Those of ``whole`` sessions, or those of rewards at once.
        """
        return [
            f"by {estimator_name(estimator)} of a {setting} {agent} has {interval(*ours)} and {control} "
            f"{interval(*theirs)}"
            for setting, estimator in self.common(agent, control)
            if (setting == SESSION) == whole
            and (ours := self.intervals[agent, setting, estimator])[1]
            < (theirs := self.intervals[control, setting, estimator])[0]
        ]


def rl_helps(
    board: Board, compared: Sequence[Row], ope: OffPolicy, unsupported: Mapping[str, str]
) -> Iterator[Verdict]:
    """The answer for the experiment, then one an agent on trial."""
    missing = missing_controls(board, unsupported)
    trial = on_trial(board.agents)
    obstacles = {agent: why for agent in trial if (why := _obstacle(board, agent, compared, missing))}
    each = [_helps(agent, _rivals(board, agent), compared, ope, obstacles.get(agent, "")) for agent in trial]
    winners = [claim.subject for claim in each if claim.holds]
    judging = names(_lower_first(column.label) for column in board.main_columns("rollout"))
    rule = (
        f"The rule: better than the same agent at discount 0 and than every supervised ranker in {judging}, each at "
        f"p < {SIGNIFICANCE} after Holm's correction over all of these comparisons and with each seed alone, and not "
        "contradicted by off-policy evaluation."
    )
    if missing:
        reason = f"A verdict needs more than this run has. Missing: {'; '.join(missing)}."
        yield Verdict(RULE, "", None, f"No verdict: {_lacking(missing)}", reason)
    elif winners:
        said = (_off_policy_sentence(agent, _rivals(board, agent), ope) for agent in winners)
        yield Verdict(RULE, "", True, f"RL helps here: {names(winners)}", " ".join([rule, *said]))
    elif obstacles:
        headline = f"No verdict: {next(iter(obstacles.values()))}"
        yield Verdict(RULE, "", None, headline, f"{rule} It could not be applied to {names(obstacles)}.")
    else:
        yield Verdict(RULE, "", False, "RL is not shown to help here", f"No agent passes. {rule}")
    yield from each


def missing_controls(board: Board, unsupported: Mapping[str, str]) -> list[str]:
    """What the rule needs and this run does not have, in words. Off-policy evaluation may be silent."""
    missing = []
    if not on_trial(board.agents):
        missing.append("the same agents at discount 0")
    if absent := [agent for agent in SUPERVISED if agent not in board.agents]:
        missing.append(f"supervised rankers ({names(absent)})")
    if RANKS_BY_A_USER_MODEL not in board.agents:
        missing.append("a greedy ranker on the training simulator's click probability")
    if not board.main_columns("rollout"):
        why = unsupported.get("rollout")
        missing.append(f"{ROLL_OUTS}{f' ({why})' if why else ''}")
    return missing


def _lacking(missing: Sequence[str]) -> str:
    """What is missing, in the words of a headline."""
    return NOT_JUDGED if all(what.startswith(ROLL_OUTS) for what in missing) else NOT_RUN


def _rivals(board: Board, agent: str) -> list[str]:
    """Whom the rule wants beaten."""
    return [agent + MYOPIC, *(name for name in SUPERVISED if name in board.agents)]


def _obstacle(board: Board, agent: str, compared: Sequence[Row], missing: Sequence[str]) -> str:
    """Why the rule cannot be applied to an agent, or nothing."""
    judging = board.main_columns("rollout")
    known = {(row["against"], row["setting"]) for row in compared if row["agent"] == agent and row["family"] == RULE}
    wanted = product(_rivals(board, agent), [column.setting for column in judging])
    unknown = [f"{rival} in {_where(world)}" for rival, world in wanted if (rival, world) not in known]
    # An agent that has fewer seeds than others is one whose seed changes nothing.
    seeds = max((estimate.seeds for column in judging for estimate in board.column(column)), default=0)
    if missing:
        return _lacking(missing)
    if unknown:
        return f"{agent} was not compared with {names(unknown, SHOWN_PAIRS)}"
    return f"{seeds} seed{'' if seeds == 1 else 's'}, and {SEEDS} are needed" if seeds < SEEDS else ""


def _helps(agent: str, rivals: Sequence[str], compared: Sequence[Row], ope: OffPolicy, obstacle: str) -> Verdict:
    rows = [row for row in compared if row["agent"] == agent and row["family"] == RULE]
    unbeaten = [row for row in rows if not (row["seed_low"] > 0 and row["p_adjusted"] < SIGNIFICANCE)]
    reason = " ".join([*_numbers(rows), _off_policy_sentence(agent, rivals, ope)])
    if obstacle:
        return Verdict(RULE, agent, None, f"No verdict on {agent}: {obstacle}", reason)
    if unbeaten:
        pairs = names((f"{row['against']} in {_where(row['setting'])}" for row in unbeaten), SHOWN_PAIRS)
        return Verdict(RULE, agent, False, f"{agent} is not shown to beat {pairs}", reason)
    if any(ope.below(agent, rival, whole=True) for rival in rivals):
        headline = f"{agent} wins in every roll-out, but off-policy evaluation contradicts"
        return Verdict(RULE, agent, False, headline, reason)
    return Verdict(RULE, agent, True, f"{agent} beats itself at discount 0 and every supervised ranker", reason)


def _numbers(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence a control, with the differences in each world that judges."""
    for rival in dict.fromkeys(row["against"] for row in rows):
        clauses = [
            f"{signed(row['difference'])} {interval(row['difference_low'], row['difference_high'])} in "
            f"{_where(row['setting'])} ({p_value(row['p_adjusted'])}; {row['seeds']} seeds from "
            f"{signed(row['seed_low'])} to {signed(row['seed_high'])})"
            for row in rows
            if row["against"] == rival
        ]
        yield f"Against {rival}: {names(clauses)}."


def _off_policy_sentence(agent: str, rivals: Sequence[str], ope: OffPolicy) -> str:
    if against := [clause for rival in rivals for clause in ope.below(agent, rival, whole=True)]:
        return f"Off-policy evaluation contradicts {agent}: {names(against, SHOWN_PAIRS)}."
    if at_once := [clause for rival in rivals for clause in ope.below(agent, rival, whole=False)]:
        return (
            f"Off-policy evaluation puts {agent} lower in rewards at once, which foresight may give up for later ones: "
            f"{names(at_once, SHOWN_PAIRS)}."
        )
    spoken = [rival for rival in rivals if ope.common(agent, rival)]
    silent = [rival for rival in rivals if rival not in spoken]
    if not spoken:
        return f"Off-policy evaluation is silent on {agent}: no estimate of it and of a control is supported."
    also = f", and is silent on {names(silent)}" if silent else ""
    return f"Off-policy evaluation does not put {agent} below {names(spoken)}{also}."


# ---- what else was measured


def best_agent(board: Board) -> Iterator[Verdict]:
    """The best ranker that is there for its own sake, beside the reference. Holds: significantly above it."""
    if not board.columns:
        return
    column = board.columns[0]
    ours = [estimate for estimate in board.column(column) if not role(estimate.agent, board.reference)]
    if not ours:
        return
    best, label = ours[0], _lower_first(column.label)
    sentence = f"By {label}, the best ranker on trial is {best.agent} with {value_with_interval(best)}"
    reference = board.get(board.reference, column) if board.reference else None
    headline = f"{best.agent} is best by {label}"
    if reference is None or best.difference is None:
        yield Verdict("best_agent", best.agent, None, headline, f"{sentence}.")
        return
    apart = best.p_value is not None and best.p_value < SIGNIFICANCE
    relation = f"{'significantly' if apart else 'not significantly'} {'above' if best.difference > 0 else 'below'} it"
    reason = (
        f"{sentence}; the reference {reference.agent} has {value_with_interval(reference)}, so it is {relation} "
        f"({p_value(best.p_value)}, Holm over agents)."
    )
    yield Verdict("best_agent", best.agent, apart and best.difference > 0, headline, reason)


def needs_rl(rollout: pa.Table, decoding: pa.Table, resamples: int, seed: int) -> list[Verdict]:
    """For each world that was decoded: does looking ahead earn more than the best page at a time?"""
    in_truth = rollout.filter(pc.equal(rollout["setting"], TRUTH)).rename_columns({"agent": "decoder"})
    tables = [in_truth.select(decoding.column_names), decoding]
    episodes = pa.concat_tables(tables).to_pandas()
    claims = []
    for world, rows in episodes.groupby("setting", sort=False):
        returns = rows.pivot_table("return", "user_key", "decoder")  # [U, decoders]
        ahead = "oracle_farsighted" if world == TRUTH else "lookahead"
        myopic = [name for name in ("oracle_myopic", "greedy", "best_page") if name in returns]
        if ahead not in returns or not myopic:
            continue
        best = max(myopic, key=lambda name: float(returns[name].mean()))
        share = ratio_of_means(returns[best], returns[ahead], returns.index, resamples, seed)
        means = ", ".join(f"{name} {number(float(returns[name].mean()))}" for name in [*myopic, ahead])
        claims.append(_foresight(str(world), share, f"Mean returns of {len(returns)} users: {means}."))
    if not claims:
        why = "nothing was decoded, because no user model passed the gate that lets it judge"
        return [Verdict("needs_rl", "", None, "No verdict: nothing was decoded", f"There is no verdict: {why}.")]
    return claims


def _foresight(world: str, share: Interval, means: str) -> Verdict:
    where = _where(world)
    reason = (
        f"In {where}, acting for the next page alone reaches {number(share.mean)} {interval(share.low, share.high)} of "
        f"the return of looking ahead. {means}"
    )
    if share.reason:
        return Verdict("needs_rl", world, None, f"No verdict in {where}: {share.reason}", reason)
    if share.high < 1:
        return Verdict("needs_rl", world, True, f"Looking ahead pays in {where}", reason)
    known = "costs" if share.low > 1 else "is not shown to pay"
    return Verdict("needs_rl", world, False, f"Looking ahead {known} in {where}", reason)


def legs_agree(board: Board) -> Iterator[Verdict]:
    """Whether no two legs order two agents oppositely with the intervals apart in both."""
    across = [found for found in board.agreements() if found.first.leg != found.second.leg]
    if not across:
        yield Verdict("legs_agree", "", None, "No verdict: one leg alone was measured", "Two legs cannot be compared.")
        return
    opposed = [(found, board.disagreements(found.first, found.second)) for found in across]
    apart = [(found, pairs) for found, pairs in opposed if pairs]
    taus = names((f"{f.first.label} with {f.second.label} {number(f.tau)}" for f in across), SHOWN_COLUMNS)
    sentences = [
        f"Kendall's τ: {taus}.",
        *(_agreement_sentence(found, pairs) for found, pairs in apart[:SHOWN_COLUMNS]),
    ]
    count = len({frozenset(pair) for _, pairs in apart for pair in pairs})
    headline = f"The legs disagree on {count} pair{'' if count == 1 else 's'} of agents" if apart else "The legs agree"
    yield Verdict("legs_agree", "", not apart, headline, " ".join(sentences))


def overestimation(board: Board) -> Iterator[Verdict]:
    """What each critic expects beyond what comes. Holds: more, with its interval above 0, in every judging world."""
    worlds = [column.setting for column in board.main_columns("rollout")]
    for agent in sorted(board.agents):
        found = {world: e for world in worlds if (e := board.get(agent, Column("rollout", world, "overestimation")))}
        if not found:
            continue
        clauses = [_expectation(board, agent, world, estimate) for world, estimate in found.items()]
        first = next(iter(found.values()))
        more = f"{number(abs(first.value))} {'more' if first.value > 0 else 'less'} than comes"
        lows = [estimate.low for estimate in found.values()]
        holds = None if None in lows else all(low is not None and low > 0 for low in lows)
        headline = f"{agent} expects {more} in {_where(next(iter(found)))}"
        yield Verdict(
            "overestimation", agent, holds, headline, f"At its own discount, its critic expects {names(clauses)}."
        )


def _expectation(board: Board, agent: str, world: str, over: Estimate) -> str:
    predicted, realised = (
        board.get(agent, Column("rollout", world, metric)) for metric in ("predicted_return", "discounted_return")
    )
    parts = f" ({number(predicted.value)} for {number(realised.value)})" if predicted and realised else ""
    return f"{signed(over.value)} {interval(over.low, over.high)} beyond what comes in {_where(world)}{parts}"


def gate_predicts(board: Board) -> Iterator[Verdict]:
    """Where the truth is known: does a user model that passed its gate order the agents as the truth does?"""
    for found in board.agreements():
        settings = {found.first.setting, found.second.setting}
        if {found.first.leg, found.second.leg} != {"rollout"} or TRUTH not in settings:
            continue
        (world,) = settings - {TRUTH}
        holds = None
        if found.tau is not None and found.p_value is not None:
            holds = found.tau > 0 and found.p_value < SIGNIFICANCE
        relation = {True: "orders", False: "is not shown to order", None: "cannot be said to order"}[holds]
        headline = f"{_where(world)} {relation} the agents as the truth does"
        opposed = board.disagreements(found.first, found.second)
        yield Verdict("gate_predicts", world, holds, headline, _agreement_sentence(found, opposed))


def _agreement_sentence(found: Agreement, opposed: Sequence[tuple[str, str]]) -> str:
    first, second = found.first.label, found.second.label
    if found.tau is None:
        start = f"{first} and {second} have too few agents in common ({found.n})"
    else:
        start = f"{first} and {second} order {found.n} agents with τ = {number(found.tau)} ({p_value(found.p_value)})"
    if not opposed:
        return f"{start}; no two are ordered oppositely with both intervals apart."
    listed = names((f"{x} over {y}" for x, y in opposed), SHOWN_PAIRS)
    return f"{start}; {first} puts {listed}, {second} the other way round, with both intervals apart."


def _where(setting: str) -> str:
    """A world of roll-outs as a sentence names it."""
    return "the storefront's truth" if setting == TRUTH else setting.split("/")[1]


def _lower_first(text: str) -> str:
    return text if text[:2].isupper() else text[:1].lower() + text[1:]
