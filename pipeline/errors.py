"""The one exception tree of the project. Every message names the value, the place and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class HindsightError(Exception):
    """Base of every error that a user can cause and mend. Its text is one clear sentence or two."""


class ConfigError(HindsightError):
    """An experiment file, an agent's settings or an environment variable cannot be used as it is."""


class DataError(HindsightError):
    """A log cannot be read, or cannot support what was asked of it."""


class TooSmallError(DataError):
    """A log that can be shown, but not split into train, validation and test."""


class StorageError(HindsightError):
    """Something that should have been published is missing or unreadable."""


class ModelError(HindsightError):
    """Weights, shapes or tensors that do not fit a model."""


class NotFittedError(ModelError):
    """A model was used before it was fitted or loaded."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: ``; did you mean 'x'?`` or the list of the known names."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(names)}"
