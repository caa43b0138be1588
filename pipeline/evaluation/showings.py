"""How often an item had been shown before a page: what tells best what a shop shows next, new items included."""

import numpy as np
import pyarrow as pa

from pipeline.evaluation.ope.logged import Floats, Ints

DAY = 24


class Showings:
    """The showings of each item by the hour, from rows ``item_key``, ``hour``, ``showings`` sorted by the first two."""

    WIDTH = 3

    def __init__(self, hours: pa.Table) -> None:
        self.keys, self.first, code = np.unique(hours["item_key"].to_numpy(), return_index=True, return_inverse=True)
        self.hour = hours["hour"].to_numpy()
        self.start = int(self.hour.min(initial=0))
        self.span = int(self.hour.max(initial=0)) - self.start + 1
        self.place = code * self.span + self.hour - self.start  # rises from row to row
        self.total = np.concatenate([[0], hours["showings"].to_numpy().cumsum()])

    def __call__(self, keys: Ints, hour: Ints) -> Floats:
        """Of items ``keys`` [n, R] before ``hour`` [n]: showings of the last day, of all time, and hours since the
        first of them, each as log(1 + x): [n, R, 3]. An item that had not been shown has zeros."""
        if not len(self.keys):
            return np.zeros((*keys.shape, self.WIDTH))
        code = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)  # [n, R]
        since = hour[:, None] - self.hour[self.first[code]]  # [n, R] hours since the first showing
        is_known = (self.keys[code] == keys) & (since > 0)
        ever = self._until(code, hour[:, None]) - self.total[self.first[code]]
        of_day = self._until(code, hour[:, None]) - self._until(code, hour[:, None] - DAY)
        return np.log1p(np.where(is_known[:, :, None], np.stack([of_day, ever, since], axis=2), 0.0))

    def _until(self, code: Ints, hour: Ints) -> Ints:
        """The running total over all items and hours, up to ``hour`` of the item ``code``, excluded."""
        asked = code * self.span + (hour - self.start).clip(0, self.span)
        found: Ints = self.total[np.searchsorted(self.place, asked)]
        return found
