"""A log in the format of Taobao's UserBehavior.csv, of any length, with the dirt of real ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.partitions import Partition

SEED = 7
DAY = 86_400  # seconds
FIRST_SECOND, DAYS = 1_511_539_200, 9  # 25 November 2017 in China
CHUNK = 1_000_000  # lines generated at a time
ACTS_OF_USER, ACTS_OF_BURST = 100, 8  # on average; in the real file's head 104 and, after pauses of 30 minutes, 6
LONGEST_BURST = 3_600  # seconds
ITEMS, CATEGORIES = 4_000_000, 9_000
SKEW = 0.6  # exponent of the items' Zipf law; the most popular item has 0.2 % of the acts, in the real head 0.04 %
AGAIN = 0.12  # share of acts on the item of the act before, as in the real file's sessions
BEHAVIOURS = {"pv": 0.9, "cart": 0.05, "fav": 0.03, "buy": 0.02}
DUPLICATES, OUTSIDE, GARBAGE = 0.001, 0.0005, 0.0001  # shares of the lines
AWAY = 400 * DAY  # how far a line outside the range is off
GARBAGE_LINES = (
    b"1,2,3,p\n", b"1,2,3,pv,1511600000,6\n", b"1,2,3,look,1511600000\n", b"1,2,3,pv,soon\n", b",2,3,pv,1511600000\n",
    b"1,,3,pv,1511600000\n", b"1\xff,2,3,pv,1511600000\n", b"\n",
)  # fmt: skip


def write_log(path: Path, rows: int, seed: int = SEED) -> None:
    """Write a Taobao-format log of ``rows`` lines, grouped by user, dirt included; a chunk at a time is in memory."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as stream:
        for done in range(0, rows, CHUNK):
            count = min(CHUNK, rows - done)
            users = range(done // ACTS_OF_USER, done // ACTS_OF_USER + max(1, count // ACTS_OF_USER))
            _write_lines(stream, rng, _acts(rng, count, users, FIRST_SECOND, DAYS * DAY - LONGEST_BURST))


def write_days(folder: Path, days: Sequence[Partition], rows: int, seed: int = SEED) -> list[Path]:
    """Write one file a day of about ``rows`` lines; a burst goes on past midnight in the next day's file."""
    rng = np.random.default_rng(seed)
    users = range(max(1, len(days) * rows // ACTS_OF_USER))
    paths: list[Path] = []
    carried: list[pa.Table] = []
    for day in days:
        acts = pa.concat_tables([*carried, _acts(rng, rows, users, int(day.start.timestamp()), DAY)])
        is_late = pc.greater_equal(acts["second"], int(day.end.timestamp()))
        carried = [acts.filter(is_late)]
        paths.append(folder / f"UserBehavior-{day.key}.csv")
        with paths[-1].open("wb") as stream:
            _write_lines(stream, rng, acts.filter(pc.invert(is_late)))
    return paths


def _acts(rng: np.random.Generator, count: int, users: range, first: int, length: int) -> pa.Table:
    """``count`` acts in bursts that start within ``length`` seconds, by user; a user's bursts in no order of time."""
    sizes = 1 + rng.poisson(ACTS_OF_BURST - 1, count)
    burst = np.repeat(np.arange(count), sizes)[:count]  # [A]
    bursts = burst[-1] + 1
    # The real head has a user's acts in order of time, which is easier to sort.
    user = np.sort(rng.integers(users.start, users.stop, bursts)) + 1  # [B]
    starts = first + rng.integers(0, length, bursts)  # [B]
    waited = np.cumsum(rng.integers(5, 120, count))
    is_first = np.diff(burst, prepend=-1) > 0
    second = starts[burst] + waited - waited[is_first][burst]
    item = 1 + (ITEMS * rng.random(count) ** (1 / (1 - SKEW))).astype(np.int64)
    item = np.where(~is_first & (rng.random(count) < AGAIN), np.roll(item, 1), item)
    behaviour = np.array(list(BEHAVIOURS))[rng.choice(len(BEHAVIOURS), count, p=list(BEHAVIOURS.values()))]
    columns = {
        "user": user[burst] * 6_700_417 % 10_000_019,  # both are prime: ten million ids in a mixed order
        "item": item,
        "category": 1 + item * 31 % CATEGORIES,
        "behaviour": behaviour,
        "second": second,
    }
    return pa.table(columns)


def _write_lines(stream: BinaryIO, rng: np.random.Generator, acts: pa.Table) -> None:
    """Write acts as CSV: some twice, some at another time, some as garbage."""
    count = len(acts)
    is_garbage = rng.random(count) < GARBAGE
    garbage = np.resize(np.array(GARBAGE_LINES, object), is_garbage.sum())
    away = rng.choice([-AWAY, AWAY], count) * (rng.random(count) < OUTSIDE)
    acts = acts.set_column(4, "second", pc.add(acts["second"], pa.array(away)))
    acts = acts.take(np.maximum(np.arange(count) - (rng.random(count) < DUPLICATES), 0)).combine_chunks()
    text = [column.combine_chunks().cast(pa.string()) for column in acts.columns]
    ended = pc.binary_join_element_wise(text.pop(), "", "\n")
    lines = pc.binary_join_element_wise(*text, ended, ",").cast(pa.binary())
    lines = pc.replace_with_mask(lines, pa.array(is_garbage), pa.array(garbage, pa.binary()))
    _, ends, data = lines.buffers()
    stream.write(memoryview(data)[: np.frombuffer(ends, np.int32)[count]])
