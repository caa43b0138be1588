"""Numbers as people read them. A missing number is a dash, never a zero."""

from math import isfinite

from pipeline.report.board import Estimate

MISSING = "–"
ROUNDING = 1e-12  # what sums of floats leave of nothing


def decimals(value: float) -> int:
    """How many digits stand after the point: three below 1, two below 1,000, none above."""
    size = round(abs(value), 3)
    return 3 if size < 1 else 2 if size < 1000 else 0


def number(value: float | None, places: int | None = None) -> str:
    """A number with ``places`` digits after the point (by its size where not given); integers in full."""
    if value is None or not isfinite(value):
        return MISSING
    if isinstance(value, int):
        text = f"{value:,}"
    elif places is None and ROUNDING < abs(value) < 0.0005:
        text = f"{value:.1e}"
    else:
        rounded = 0.0 if abs(value) <= ROUNDING else value
        text = f"{rounded:,.{decimals(value) if places is None else places}f}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def percent(share: float) -> str:
    """A share of 1 as a percentage; one digit after the point from 1 % on."""
    return f"{number(100 * share, 1 if share == 0 or abs(share) >= 0.01 else None)} %"


def signed(value: float | None, places: int | None = None) -> str:
    text = number(value, places)
    return f"+{text}" if value is not None and value > ROUNDING else text


def interval(low: float | None, high: float | None, places: int | None = None) -> str:
    return "" if low is None or high is None else f"[{number(low, places)}, {number(high, places)}]"


def value_with_interval(estimate: Estimate) -> str:
    places = decimals(estimate.value)
    return f"{number(estimate.value, places)} {interval(estimate.low, estimate.high, places)}".strip()


def p_value(p: float | None) -> str:
    if p is None or not isfinite(p):
        return f"p {MISSING}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
