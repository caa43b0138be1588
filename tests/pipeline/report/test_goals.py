from typing import Any

import pyarrow as pa

from pipeline.report.goals import goals


def point(agent: str, goal: str, clicks: float, on_front: bool | None, setting: str = "truth") -> dict[str, Any]:
    axes = {"clicks": clicks, "purchases": 0.5, "depth": 4.0, "return": 6.0}
    ends = {f"{axis}_{end}": value + shift for axis, value in axes.items() for end, shift in (("low", -1), ("high", 1))}
    return {"setting": setting, "agent": agent, "goal": goal, "on_front": on_front, **axes, **ends}


POINTS = [
    point("goalrec_off", "clicks", 5.0, True),
    point("goalrec_off", "depth", 3.0, False),
    point("<b>", "", 4.0, True),
    point("oracle_myopic", "", 8.0, None),
    point("iql", "", 2.0, True, "judge/attention/natural"),
]


def test_the_truth_comes_first_and_oracles_are_no_part_of_a_front() -> None:
    shown = goals(pa.Table.from_pylist(POINTS[::-1]))
    assert shown.fronts == [
        "In the truth: 2 of 3 are on the front: <b> and goalrec_off (clicks).",
        "In attention: 1 of 1 are on the front: iql.",
    ]
    assert [row[-1].text for row in shown.tables[0].rows] == ["sees the truth", "yes", "no", "yes"]


def test_points_on_the_front_are_ringed_and_named() -> None:
    figure = goals(pa.Table.from_pylist(POINTS)).charts[0].figure
    swept, others = figure["data"][:2]
    assert swept["x"] == [5.0, 3.0]
    assert swept["text"] == ["clicks", ""]
    assert [width > 0 for width in swept["marker"]["line"]["width"]] == [True, False]
    assert others["text"] == ["&lt;b&gt;", "oracle_myopic"]
    assert [width > 0 for width in others["marker"]["line"]["width"]] == [True, False]


def test_each_kind_of_point_has_a_legend_and_a_symbol_of_its_own() -> None:
    figure = goals(pa.Table.from_pylist(POINTS)).charts[0].figure
    legend = {trace["name"]: trace["marker"]["symbol"] for trace in figure["data"] if trace.get("name")}
    assert list(legend) == ["goalrec_off, a point a goal", "other rankers"]
    assert len(set(legend.values())) == 2


def test_no_sweep_is_no_chart() -> None:
    shown = goals(pa.table({"setting": pa.array([], pa.string())}))
    assert (shown.fronts, shown.charts, shown.tables) == ([], [], [])
