"""The codes of feedback, shared by SQL, Parquet and tensors. Imports nothing heavy: SQL needs it without torch."""

from enum import IntEnum


class Feedback(IntEnum):
    """What came of one shown item. ``NONE`` marks a padded slot; from ``CLICK`` on the feedback is positive."""

    NONE = 0
    SKIP = 1
    CLICK = 2
    FAVORITE = 3
    CART = 4
    PURCHASE = 5


FIRST_POSITIVE = Feedback.CLICK
