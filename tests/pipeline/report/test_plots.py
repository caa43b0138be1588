import base64
import io
import re

import numpy as np
import pytest
from matplotlib.image import imread

from pipeline.errors import DataError
from pipeline.report.plots import bars, histogram, lines, reliability, stacked

RNG = np.random.default_rng(3)
DAYS = {f"2024-03-{n:02}": n for n in range(1, 31)}
PLOTS = {
    "histogram": lambda: histogram(RNG.normal(size=5000), "Session lengths", "pages"),
    "bars": lambda: bars([f"agent_{n}" for n in range(12)], range(12), range(-1, 11), range(1, 13), "Values", "reward"),
    "stacked": lambda: stacked({"a": DAYS, "b": DAYS}, "Events", "day", "events", are_shares=True),
    "lines": lambda: lines({f"agent_{n}": (range(50), RNG.normal(size=50)) for n in range(8)}, "Loss", "step", "loss"),
    "reliability": lambda: reliability(np.linspace(0.01, 0.3, 10), np.linspace(0.0, 0.35, 10), "Clicks"),
}


def picture(markdown: str) -> bytes:
    found = re.fullmatch(r"!\[[^\]\[]*\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found, markdown[:80]
    return base64.b64decode(found[1])


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_markdown_with_a_small_png_inside(name: str) -> None:
    png = picture(PLOTS[name]())
    assert len(png) < 60_000
    pixels = imread(io.BytesIO(png), format="png")
    assert pixels.shape[1] == 512
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10


def test_the_same_values_give_the_same_bytes() -> None:
    assert histogram([1, 2, 2], "a", "b") == histogram([1, 2, 2], "a", "b")


def test_values_with_counts_are_drawn_as_if_they_were_repeated() -> None:
    assert histogram([1, 2], "a", "b", counts=[3, 5]) == histogram([1] * 3 + [2] * 5, "a", "b")


def test_a_longer_bar_is_drawn_longer_and_the_first_on_top() -> None:
    pixels = imread(io.BytesIO(picture(bars(["x", "y"], [9, 3], [9, 3], [9, 3], "t", "l"))), format="png")
    blue = (np.abs(pixels[..., :3] - np.array([0x2F, 0x81, 0xC9]) / 255) < 0.05).all(axis=2)
    widths = blue.sum(axis=1)
    rows = np.flatnonzero(widths)
    assert widths[rows[0]] == pytest.approx(3 * widths[rows[-1]], rel=0.05)


def test_series_are_stacked_and_none_hides_another() -> None:
    pixels = imread(io.BytesIO(picture(stacked({"a": {"x": 3}, "b": {"x": 9}}, "t", "l", "n"))), format="png")
    colours = (("a", (0x2F, 0x81, 0xC9)), ("b", (0xD9, 0x82, 0x2B)))
    heights = {
        name: (np.abs(pixels[:, 400:460, :3] - np.array(colour) / 255) < 0.05).all(axis=2).sum(axis=0).max()
        for name, colour in colours
    }
    assert heights["b"] == pytest.approx(3 * heights["a"], rel=0.05)


def test_values_that_are_not_finite_are_left_out() -> None:
    assert len(picture(histogram([1.0, np.nan, np.inf, 2.0], "a", "b"))) > 1000


def test_names_with_dollars_and_brackets_are_drawn_as_they_are() -> None:
    picture(bars(["$x_{", "[a](b)"], [1, 2], [np.nan, 1], [np.nan, 3], "[t](u) $", "$"))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: histogram([], "Lengths", "pages"), "Nothing to plot for 'Lengths'"),
        (lambda: histogram([np.nan], "Lengths", "pages"), "Nothing to plot for 'Lengths'"),
        (lambda: bars([], [], [], [], "Values", "x"), "Nothing to plot for 'Values'"),
        (lambda: stacked({}, "Events", "x", "y"), "Nothing to plot for 'Events'"),
        (lambda: lines({}, "Loss", "x", "y"), "Nothing to plot for 'Loss'"),
        (lambda: reliability([], [], "Clicks"), "Nothing to plot for 'Clicks'"),
    ],
)
def test_nothing_to_plot_is_an_error(draw, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=message):
        draw()
