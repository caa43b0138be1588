"""Plotly figures as plain dicts, which ``report.js`` draws: no time stamps, no random ids, hence the same bytes.

Plotly reads a small HTML in labels, so every name that comes from the data is escaped here.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple, Protocol

Figure = dict[str, Any]
COLOURS = ("#2f81c9", "#d9822b", "#0f9d7a", "#b8549b", "#7a7f2a", "#c0504d", "#5b6ee1", "#2aa1b3")
GREY = "#8a8f98"
SYMBOLS = ("circle", "diamond", "square", "triangle-up")


class Measured(Protocol):
    """What a dot with whiskers needs; ``board.Estimate`` is one."""

    @property
    def agent(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def interval(self) -> tuple[float, float] | None: ...


class Dot(NamedTuple):
    agent: str
    value: float
    interval: tuple[float, float] | None


class Point(NamedTuple):
    x: float
    y: float
    low: float
    high: float


class Mark(NamedTuple):
    x: float
    y: float
    colour: float
    label: str  # beside the point; empty where the legend says enough
    story: str  # shown when it is pointed at
    stands_out: bool


def whiskers(series: Mapping[str, Sequence[Measured]], axis: str, reference: str | None) -> Figure:
    """A dot with its 95 % interval for every agent; a dotted line at the reference's value of the first series."""
    agents = list(dict.fromkeys(e.agent for estimates in series.values() for e in estimates))
    line = {agent: float(-n) for n, agent in enumerate(agents)}  # the best on top
    # Series share an agent's line, a little apart, so that no interval hides another.
    shift = {name: 0.15 * (len(series) - 1 - 2 * k) for k, name in enumerate(series)}
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": escape(name),
            "x": [e.value for e in estimates],
            "y": [line[e.agent] + shift[name] for e in estimates],
            "text": [escape(e.agent) for e in estimates],
            "marker": {"color": COLOURS[k % len(COLOURS)], "symbol": SYMBOLS[k % len(SYMBOLS)], "size": 10},
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [e.interval[1] - e.value if e.interval else 0 for e in estimates],
                "arrayminus": [e.value - e.interval[0] if e.interval else 0 for e in estimates],
                "color": COLOURS[k % len(COLOURS)],
                "thickness": 1.6,
                "width": 5,
            },
            "hovertemplate": "%{text}: %{x:.3f}<extra></extra>",
        }
        for k, (name, estimates) in enumerate(series.items())
    ]
    layout = {
        "height": 110 + 34 * len(agents),
        "showlegend": len(series) > 1,
        "xaxis": {"title": {"text": escape(axis)}},
        "yaxis": {
            "tickvals": list(line.values()),
            "ticktext": [escape(agent) for agent in agents],
            "range": [0.4 - len(agents), 0.6],
            "zeroline": False,
        },
        "shapes": [
            {"type": "line", "x0": e.value, "x1": e.value, "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
             "line": {"dash": "dot", "width": 1.5, "color": GREY}}
            for e in next(iter(series.values()), []) if e.agent == reference
        ],
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def curves(series: Mapping[str, Sequence[Point]], x_axis: str, y_axis: str) -> Figure:
    """A line for each agent with the range over its seeds as thin bars."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": escape(name),
            "x": [p.x for p in points],
            "y": [p.y for p in points],
            "line": {"color": COLOURS[k % len(COLOURS)], "width": 2},
            "marker": {"size": 6, "symbol": SYMBOLS[k // len(COLOURS) % len(SYMBOLS)]},
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [p.high - p.y for p in points],
                "arrayminus": [p.y - p.low for p in points],
                "thickness": 1,
                "width": 3,
            },
        }
        for k, (name, points) in enumerate(series.items())
    ]
    layout = {
        "height": 360,
        "showlegend": True,
        "xaxis": {"title": {"text": escape(x_axis)}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": escape(y_axis)}},
    }
    return {"data": traces, "layout": layout}


def reliability(series: Mapping[str, Sequence[tuple[float, float]]], event: str) -> Figure:
    """Observed against predicted probability, a line a model, and the diagonal on which a calibrated one lies."""
    top = max((max(point) for points in series.values() for point in points), default=1.0)
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": escape(name),
            "x": [predicted for predicted, _ in points],
            "y": [observed for _, observed in points],
            "line": {"color": COLOURS[k % len(COLOURS)], "width": 2},
            "marker": {"size": 6, "symbol": SYMBOLS[k % len(SYMBOLS)]},
        }
        for k, (name, points) in enumerate(series.items())
    ]
    layout = {
        "height": 360,
        "showlegend": True,
        "xaxis": {"title": {"text": escape(f"predicted probability of {event}")}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "observed"}, "rangemode": "tozero"},
        "shapes": [
            {"type": "line", "x0": 0, "y0": 0, "x1": top, "y1": top, "layer": "below",
             "line": {"dash": "dot", "width": 1.5, "color": GREY}}
        ],
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def trade_off(series: Mapping[str, Sequence[Mark]], x_axis: str, y_axis: str, colour_axis: str) -> Figure:
    """Points by two values with a third as colour; a series has a symbol of its own, the points that stand out a ring.

    Whiskers are left to the table: three intervals a point would hide the points.
    """
    symbols = {name: SYMBOLS[k % len(SYMBOLS)] for k, name in enumerate(series)}
    traces = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "showlegend": False,
            "x": [mark.x for mark in marks],
            "y": [mark.y for mark in marks],
            "text": [escape(mark.label) for mark in marks],
            "textposition": _above_and_below([mark.x for mark in marks]),
            "textfont": {"size": 11},
            "hovertext": [escape(mark.story) for mark in marks],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "marker": {
                "color": [mark.colour for mark in marks],
                "coloraxis": "coloraxis",
                "opacity": 1,
                "symbol": symbols[name],
                "size": [14 if mark.stands_out else 9 for mark in marks],
                "line": {"width": [3 if mark.stands_out else 0 for mark in marks], "color": COLOURS[5]},
            },
        }
        for name, marks in series.items()
    ]
    traces += [  # the legend's own symbols: those of coloured points are black on any paper
        {
            "type": "scatter",
            "mode": "markers",
            "name": escape(name),
            "x": [None],
            "y": [None],
            "marker": {"symbol": symbol, "size": 10, "color": GREY},
        }
        for name, symbol in symbols.items()
    ]
    layout = {
        "height": 480,
        "showlegend": True,
        "xaxis": {"title": {"text": escape(x_axis)}},
        "yaxis": {"title": {"text": escape(y_axis)}},
        "coloraxis": {
            "colorscale": [[k / 2, COLOURS[colour]] for k, colour in enumerate((6, 2, 1))],  # seen on light and dark
            "colorbar": {"title": {"text": escape(colour_axis)}, "thickness": 12, "outlinewidth": 0},
        },
    }
    return {"data": traces, "layout": layout}


def _above_and_below(xs: Sequence[float]) -> list[str]:
    """Where labels stand, so that those of neighbours do not meet."""
    order = sorted(range(len(xs)), key=lambda k: xs[k])
    place = {k: n for n, k in enumerate(order)}
    return ["bottom center" if place[k] % 2 else "top center" for k in range(len(xs))]


def stacked_bars(
    series: Mapping[str, Mapping[str, float]], x_axis: str, y_axis: str, are_shares: bool = False
) -> Figure:
    """Values by bucket (a period or a range of lengths), one colour each series.

    The legend is left out where the one series is what ``y_axis`` already names.
    """
    traces = [
        {
            "type": "bar",
            "name": escape(name),
            "x": [escape(bucket) for bucket in values],
            "y": list(values.values()),
            "marker": {"color": COLOURS[k % len(COLOURS)]},
        }
        for k, (name, values) in enumerate(series.items())
    ]
    layout = {
        "height": 320,
        "barmode": "stack",
        "showlegend": list(series) != [y_axis],
        "xaxis": {
            "title": {"text": escape(x_axis)},
            "type": "category",  # plotly would read some ranges of lengths as dates
            "nticks": 12,
            "ticks": "outside",
            "tickcolor": "rgba(0,0,0,0)",  # room between the labels and the axis's zero
        },
        "yaxis": {"title": {"text": escape(y_axis)}, **({"tickformat": ".1%"} if are_shares else {})},
    }
    return {"data": traces, "layout": layout}
