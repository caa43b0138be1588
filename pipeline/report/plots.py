"""Small PNG plots for Dagster's metadata. Every function returns Markdown with the picture inside it.

The figures use matplotlib's objects without pyplot: no global state, no display, safe in any thread.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import DataError
from pipeline.report.charts import COLOURS

DOTS_PER_INCH = 80
TICKS = 6  # along an axis of buckets, at most
ACCENT, SOFT = "#2f81c9", "#8a8f98"


def histogram(values: ArrayLike, title: str, x_label: str, bins: int = 30, counts: ArrayLike | None = None) -> str:
    """How ``values`` [n] are spread, each ``counts`` [n] times; the title counts those not finite, left out."""
    numbers = np.asarray(values, dtype=float).ravel()
    times = np.ones(len(numbers)) if counts is None else np.asarray(counts, dtype=float).ravel()
    is_finite = np.isfinite(numbers)
    _require(numbers[is_finite], title)
    left_out = times[~is_finite].sum()
    axes = _axes(f"{title} (n = {times[is_finite].sum():,.0f}{f', {left_out:,.0f} left out' if left_out else ''})")
    axes.hist(numbers[is_finite], bins=bins, color=ACCENT, weights=times[is_finite])
    axes.set(xlabel=x_label, ylabel="count")
    return _markdown(axes, title)


def bars(names: Sequence[str], values: ArrayLike, low: ArrayLike, high: ArrayLike, title: str, x_label: str) -> str:
    """Horizontal bars, the first on top, with intervals from ``low`` to ``high``; all [n], NaN for no interval."""
    heights, below, above = (np.asarray(numbers, dtype=float) for numbers in (values, low, high))
    _require(heights, title)
    whiskers = np.nan_to_num(np.clip(np.stack([heights - below, above - heights]), 0, None))
    axes = _axes(title, rows=len(names))
    axes.barh(range(len(names)), heights, xerr=whiskers, color=ACCENT, ecolor="#333", capsize=3, height=0.6)
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.invert_yaxis()
    axes.set(xlabel=x_label)
    return _markdown(axes, title)


def stacked(
    series: Mapping[str, Mapping[str, float]], title: str, x_label: str, y_label: str, are_shares: bool = False
) -> str:
    """Upright bars by bucket, the series on top of each other; all series have the same buckets, in their order.

    The legend is left out where the one series is what ``y_label`` already names.
    """
    _require(series, title)
    buckets = list(next(iter(series.values())))
    axes, below = _axes(title), np.zeros(len(buckets))
    for colour, (name, found) in zip(cycle(COLOURS), series.items(), strict=False):
        heights = np.fromiter(found.values(), dtype=float)
        axes.bar(range(len(buckets)), heights, bottom=below, label=_plain(name), color=colour)
        below += heights
    step = 1 + (len(buckets) - 1) // TICKS
    axes.set_xticks(range(0, len(buckets), step), [_plain(bucket) for bucket in buckets[::step]], fontsize=8)
    axes.set(xlabel=x_label, ylabel=y_label)
    if are_shares:
        axes.yaxis.set_major_formatter("{x:.1%}")
    if list(series) != [y_label]:
        axes.figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return _markdown(axes, title)


def lines(series: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str, x_label: str, y_label: str) -> str:
    """One line for each name, from its x [n] and y [n]."""
    _require(series, title)
    axes = _axes(title)
    for name, (x, y) in series.items():
        axes.plot(np.asarray(x), np.asarray(y), marker=".", label=_plain(name))
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.legend(fontsize=8, frameon=False)
    return _markdown(axes, title)


def reliability(predicted: ArrayLike, observed: ArrayLike, title: str) -> str:
    """Observed frequency against mean predicted probability of each bin, both [bins]; the diagonal is perfect."""
    x, y = np.asarray(predicted, dtype=float), np.asarray(observed, dtype=float)
    _require(x, title)
    limit = 1.05 * max(x.max(), y.max(), 1e-3)
    axes = _axes(title)
    axes.plot([0, limit], [0, limit], color=SOFT, linestyle=":")
    axes.plot(x, y, marker="o", color=ACCENT)
    axes.set(xlabel="predicted probability", ylabel="observed frequency", xlim=(0, limit), ylim=(0, limit))
    return _markdown(axes, title)


def _axes(title: str, rows: int = 0) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, max(3.2, 0.9 + 0.3 * rows)), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_plain(title), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _markdown(axes: Any, title: str) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    png = io.BytesIO()
    # A palette makes the file a third of the size; Dagster keeps every picture in its event log.
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64).save(png, "png", optimize=True)
    alternative = title.translate(str.maketrans("", "", "[]()"))
    return f"![{alternative}](data:image/png;base64,{base64.b64encode(png.getvalue()).decode()})"


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _require(values: Any, title: str) -> None:
    if not len(values):
        raise DataError(f"Nothing to plot for {title!r}: there are no values. Publish a row count instead.")
