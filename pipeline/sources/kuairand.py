"""KuaiRand Pure, 1K and 27K: impressions of the Kuaishou app from 8 April to 8 May 2022 with what came of them.

Files (https://kuairand.com): log_standard_*, log_random_*, user_features_* and video_features_basic_*, CSV with a
header; 27K has its logs in parts. Licence CC BY-SA 4.0; cite Gao et al., "KuaiRand: An Unbiased Sequential
Recommendation Dataset with Randomly Exposed Videos", CIKM 2022.

A row is an impression at ``time_ms`` and, ``play_time_ms`` later, what came of it: a watch whose value is the share of
the video that was played (none where the publisher gives no duration), or a click where ``source.positive`` takes the
publisher's flag ``long_view`` or ``is_click`` as the positive; and a favorite where ``is_like``. (That ``time_ms`` is
when the video was shown is inferred: of 4,693 showings in the main feed less than ten minutes before the user's next,
25 contradict it, and 62 contradict that it is when the playing ended.) Follows, comments, forwards and hates are left
out: no event type means the same, and one of them is on 0.5 % of the six days' rows. With ``source.session: day`` the
row's ``date``, a day in China, is the session: KuaiRand-Pure keeps only the 7,583 videos of the random pool, about two
of a user's day. Rows that are there twice are told twice here; ingest counts the duplicates. HAC's 50-core filter is
not applied: it would choose rows by what comes after them.

In the random log a video drawn from that pool replaced the recommended one. Its propensity is left null: that the draw
was uniform is not published, nor are the odds that a slot was replaced by user or scenario, and the rows around it, of
15 recommenders, have none at all. ``source.random_log: false`` leaves these exposures out.

Items: the first tag is the category, the author the shop, midnight in China of the upload day the listing. Users: the
publisher's snapshot, of an unknown day. Left out: video_features_statistic_* and ``visible_status``, which look at the
whole period and would tell the future; ranges, whose exact numbers are there; ``onehot_feat`` 2 to 5, 7 and 8,
encrypted categories of 15 to 1,471 values. Each version numbers users and videos anew: keep one in a folder.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import DataError
from pipeline.source_settings import KuaiRandSource
from pipeline.sources.base import ITEM_COLUMNS, USER_COLUMNS, Lines, RawFile, log_folder, nothing
from pipeline.sources.files import held, read_catalogue
from pipeline.sources.text import Layout, count_rows, read_rows, text_files
from pipeline.warehouse import run_sql

LOG = Layout(
    quote='"',
    needed=(
        "user_id", "video_id", "date", "time_ms", "is_click", "is_like", "long_view", "play_time_ms", "duration_ms",
    ),
)  # fmt: skip
VIDEOS = Layout(
    quote='"',
    needed=(
        "video_id", "author_id", "video_type", "upload_dt", "upload_type", "video_duration", "server_width",
        "server_height", "tag",
    ),
)  # fmt: skip
USERS = Layout(
    quote='"',
    needed=(
        "user_id", "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author",
        "follow_user_num", "fans_user_num", "friend_user_num", "register_days",
        *(f"onehot_feat{place}" for place in (0, 1, 6, 9, 10, 11, 12, 13, 14, 15, 16, 17)),
    ),
)  # fmt: skip
_VERSION = re.compile(r"_(pure|1k|27k)[_.]", re.IGNORECASE)


class KuaiRand:
    """A folder with the files of one version, or the one above its ``data``."""

    name = "kuairand"
    has_impressions = True
    unpacks = True

    def __init__(self, settings: KuaiRandSource, folder: Path) -> None:
        del folder  # nothing is generated
        self.settings = settings
        self.folder = log_folder(settings.path, "KuaiRand")

    def discover(self) -> list[RawFile]:
        folder = next((f for f in (self.folder, self.folder / "data") if any(f.glob("log_*.csv*"))), self.folder)
        kinds = ("standard", "random") if self.settings.random_log else ("standard",)
        logs = [path for kind in kinds for path in text_files(folder, f"log_{kind}_*.csv", 1)]
        if not logs:
            wanted = " or ".join(f"log_{kind}_*.csv" for kind in kinds)
            raise DataError(
                f"{folder} has no {wanted}; it holds {held(folder)}. Give the folder of a version of KuaiRand."
            )
        videos, users = (
            text_files(folder, "video_features_basic_*.csv", 1),
            text_files(folder, "user_features_*.csv", 1),
        )
        _refuse_mixture(folder, [*logs, *videos, *users])
        events = [RawFile(path, "events") for path in logs]
        return [*events, *(RawFile(path, "items") for path in videos), *(RawFile(path, "users") for path in users)]

    def read(self, con: DuckDBPyConnection, file: RawFile, only: Lines | None = None) -> DuckDBPyRelation:
        read_rows(con, file.path, LOG, only).create_view("raw_rows")
        params = {"positive": self.settings.positive, "by_day": self.settings.session == "day"}
        return run_sql(con, "staging/kuairand_events", params)

    def count(self, con: DuckDBPyConnection, file: RawFile) -> int:
        return count_rows(file.path, LOG)

    def items(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        for file in files:
            if file.kind == "items":
                return read_catalogue(con, file.path, VIDEOS, "staging/kuairand_items")
        return nothing(con, ITEM_COLUMNS)

    def users(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        for file in files:
            if file.kind == "users":
                return read_catalogue(con, file.path, USERS, "staging/kuairand_users")
        return nothing(con, USER_COLUMNS)


def _refuse_mixture(folder: Path, paths: Sequence[Path]) -> None:
    """Raise DataError where the same id would mean two users or two videos, or be described twice."""
    versions = {match[1].lower() for path in paths if (match := _VERSION.search(path.name))}
    if len(versions) > 1:
        both = " and ".join(sorted(versions))
        raise DataError(f"{folder} holds files of several versions ({both}) of KuaiRand; keep one version in a folder.")
    for start in ("user_features_", "video_features_basic_"):
        names = [path.name for path in paths if path.name.startswith(start)]
        if len(names) > 1:
            raise DataError(f"{folder} holds {' and '.join(names)}; keep one of them.")
