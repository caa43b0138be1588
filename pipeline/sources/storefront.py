"""The embedded shop as a source: its log is simulated once, then read like anybody's Parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import StorageError
from pipeline.source_settings import StorefrontSource
from pipeline.sources.base import Lines, RawFile, parquet_rows
from pipeline.storage import code_fingerprint, file_hash, fingerprint
from pipeline.warehouse import literal

if TYPE_CHECKING:
    from models.simulators.storefront import Shoppers, Storefront


RAW_COLUMNS = (
    "user_id", "item_id", "event_ts", "event_type", "value", "session_id", "request_id", "position", "propensity",
)  # fmt: skip


class StorefrontLog:
    """The log of one storefront. It lies under ``folder``, named by its settings and the code that makes it."""

    name = "storefront"
    has_impressions = True
    unpacks = False

    def __init__(self, settings: StorefrontSource, folder: Path) -> None:
        self.settings = settings
        self.folder = folder

    @property
    def home(self) -> Path:
        """Where this log's files lie: the hidden truth beside what a shop would see."""
        made_by = (
            code_fingerprint("models.simulators.storefront"),
            file_hash(Path(__file__).parent / "storefront_log.py"),
        )
        return self.folder / fingerprint(self.settings.model_dump(mode="json"), made_by)

    def discover(self) -> list[RawFile]:
        """The log's files, simulated first when they are not there yet."""
        if not self.home.exists():
            # Torch is loaded only when there is something to simulate.
            from pipeline.sources.storefront_log import write_log

            s = self.settings
            write_log(_shop(s), s.users, s.start, s.days, s.seed, self.home)
        events = [RawFile(path, "events") for path in sorted((self.home / "events").glob("*.parquet"))]
        pools = [RawFile(path, "pools") for path in sorted((self.home / "pools").glob("*.parquet"))]
        entities = [RawFile(self.home / "items.parquet", "items"), RawFile(self.home / "users.parquet", "users")]
        return [*events, *entities, *pools]

    def read(self, con: DuckDBPyConnection, file: RawFile, only: Lines | None = None) -> DuckDBPyRelation:
        """One day's events; a simulated record is never refused."""
        return parquet_rows(con, file.path, only).project(
            f"{', '.join(RAW_COLUMNS)}, line, null::varchar as raw, null::varchar as reason"
        )

    def count(self, con: DuckDBPyConnection, file: RawFile) -> int:
        """Rows of one day's file, from its footer."""
        return int(pq.read_metadata(file.path).num_rows)

    def items(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        """What the shop shows of its items; features are x, badge, rating and the log of the price."""
        path = literal(self.home / "items.parquet")
        return con.sql(
            "select item_id, title, category, null::varchar as brand, null::varchar as shop, price, "
            f"null::timestamptz as listed_ts, features::float[] as features from read_parquet({path})"
        )

    def users(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        """What a shop's CRM would know: a stale, noisy portrait of each user's home taste."""
        path = literal(self.home / "users.parquet")
        return con.sql(f"select user_id, features::float[] as features from read_parquet({path})")


def load_truth(settings: StorefrontSource, folder: Path) -> "tuple[Storefront, Shoppers]":
    """The shop itself and its users after their last logged session, in the order of their ids (row n is ``u00000n``).

    Raises StorageError when the log was never made.
    """
    from safetensors.torch import load_file

    from models.simulators.storefront import Shoppers

    path = StorefrontLog(settings, folder).home / "truth" / "population.safetensors"
    if not path.exists():
        raise StorageError(
            f"There is no hidden truth at {path}: the log was not made yet. Materialise `manifest` first."
        )
    return _shop(settings), Shoppers(**load_file(path))


def _shop(settings: StorefrontSource) -> "Storefront":
    from models.simulators.storefront import Storefront, StorefrontConfig

    return Storefront(StorefrontConfig(seed=settings.seed, myopic_world=settings.myopic_world))
