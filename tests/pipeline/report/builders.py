"""Two runs for tests: the demo, and the demo with one agent moved."""

import pyarrow as pa
import pyarrow.compute as pc

from tests.published import demo_tables


def moved(agent: str, by: float) -> dict[str, pa.Table]:
    """The demo after a change that adds ``by`` to every return of an agent; other code, the same raw files."""
    tables = demo_tables()
    rollout, leaderboard = tables["rollout"].to_pandas(), tables["leaderboard"].to_pandas()
    rollout.loc[rollout["agent"] == agent, "return"] += by
    its = (leaderboard["agent"] == agent) & (leaderboard["metric"] == "return")
    leaderboard.loc[its, ["value", "ci_low", "ci_high"]] += by
    leaderboard["code_hash"] = "beef" * 4
    for name, frame in (("rollout", rollout), ("leaderboard", leaderboard)):
        tables[name] = pa.Table.from_pandas(frame, tables[name].schema, preserve_index=False)
    return tables


def without(table: pa.Table, agent: str) -> pa.Table:
    return table.filter(pc.not_equal(table["agent"], agent))
