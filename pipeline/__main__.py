"""``python -m pipeline``: what the Makefile calls. Dagster is imported only where it runs."""

import argparse
import atexit
import logging
import os
import sys
import time

from pipeline.errors import ConfigError, HindsightError, TooSmallError
from pipeline.experiment import experiment_from_environment


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a HindsightError ends it with one clear sentence and status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("pipeline").setLevel(logging.INFO)
    options = _parser().parse_args(arguments)
    # DuckDB 2.0's bindings report "leaks" when the interpreter ends, after all that we have to say.
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno()))
    try:
        options.run(options)
    except HindsightError as error:
        print(f"hindsight: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    about = "Hindsight. The environment variables EXPERIMENT and RAW choose the experiment and its raw files."
    parser = argparse.ArgumentParser("python -m pipeline", description=about)
    commands = parser.add_subparsers(required=True)
    for function, text in (
        (demo, "materialize what is stale of the experiment, then show the leaderboard"),
        (check, "read the log, show how it is understood, write nothing"),
        (query, "answer a question of sql/queries over the results"),
        (report, "write the HTML report again from the results"),
        (compare, "set two runs side by side in one page: two experiments, or this run and the previous one"),
        (gc, "remove published versions that nothing points to"),
    ):
        command = commands.add_parser(function.__name__, help=text)
        command.set_defaults(run=function)
        if function is query:
            command.add_argument("name", nargs="?", default="leaderboard")
            command.add_argument("params", nargs="*", metavar="key=value")
        if function is compare:
            about_runs = "an experiment, or the path of a results.duckdb"
            command.add_argument("first", nargs="?", default=os.environ.get("EXPERIMENT") or "demo", help=about_runs)
            command.add_argument("second", nargs="?", default="", help=about_runs)
    return parser


def demo(options: argparse.Namespace) -> None:
    """Launch one run of the stale assets, none when nothing is stale, and say where the results lie."""
    from pipeline.plan import Plan

    started = time.monotonic()
    plan = Plan(experiment_from_environment())
    stale = plan.stale_tables()
    if stale:
        from pipeline.launch import launch

        print(f"Materializing {len(stale)} stale tables of {plan.experiment.name}: {', '.join(stale)}", flush=True)
        try:
            launch(plan)
        except TooSmallError as error:
            raise TooSmallError(f"{error} What the log holds is shown at {plan.data_page}") from None
    else:
        print(f"Every asset of {plan.experiment.name} is fresh: no run was launched.")
    from pipeline.products import leaderboard_text

    print(f"\n{leaderboard_text(plan)}\n")
    print(f"report            {plan.report}")
    print(f"results (DuckDB)  {plan.results}")
    print(f"took              {time.monotonic() - started:.0f} s")


def check(options: argparse.Namespace) -> None:
    """How the log would be understood."""
    from pipeline.check import describe_log

    print(describe_log(experiment_from_environment()))


def query(options: argparse.Namespace) -> None:
    """Print the answer of one query; views are pointed at this folder first, should it have been moved."""
    from pipeline import products, results
    from pipeline.plan import Plan

    plan = Plan(experiment_from_environment())
    pairs = [pair.partition("=") for pair in options.params]
    if broken := [key for key, sign, _ in pairs if not sign]:
        raise ConfigError(f"{broken[0]!r} is no parameter; write key=value, for example a=goalrec_off.")
    if plan.results.exists():
        products.follow_move(plan)
    answer = results.query(plan.results, options.name, {key: value for key, _, value in pairs})
    print(products.answer_text(answer))


def report(options: argparse.Namespace) -> None:
    """Write the report again."""
    from pipeline.plan import Plan
    from pipeline.products import publish_report

    print(publish_report(Plan(experiment_from_environment())))


def compare(options: argparse.Namespace) -> None:
    """Write the page beside the later run's results."""
    from pipeline.report.compare import write_comparison
    from pipeline.report.runs import two_runs

    with two_runs(options.first, options.second) as (before, after):
        target = after.results.with_name("compare.html")
        write_comparison(before, after, target)
    print(target)


def gc(options: argparse.Namespace) -> None:
    """Remove unnamed versions, and what was staged or simulated for files and settings that are no more."""
    from pipeline.plan import Plan

    gone = Plan(experiment_from_environment()).collect_garbage()
    print("\n".join(["Removed:", *map(str, gone)]) if gone else "Nothing to remove.")


if __name__ == "__main__":
    sys.exit(main())
