"""The storefront's log: every session of every user, simulated in rounds and written as the files of a real shop.

Round r is every user's r-th session, in lock-step by page, so nothing loops over users or sessions. Users come in
chunks that are spilled to disk and sorted into days afterwards: memory is that of one chunk, whatever the log's size.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from models.feedback import Feedback
from models.simulators.storefront import Shoppers, Storefront, seeded
from models.simulators.storefront_policies import draw_buckets, plackett_luce, production_logits
from pipeline.warehouse import connect

CHUNK = 4_000  # users: about a million impressions
MORE_SESSIONS = 4.0  # sessions of a user: 1 + Poisson(4)
SECOND = 1_000_000  # microseconds, the unit of all times here
PAGE_SECONDS = (20.0, 60.0)  # from a page to the next, uniform
REACTION_SECONDS = (1.0, 6.0)  # from page to click, click to cart, cart to purchase: done before the next page
BETWEEN_SESSIONS = 3600 * SECOND  # at least, from the end of one session to the start of the user's next
PORTRAIT_NOISE = 0.5  # of the users' published features around their home taste, times 1/√d

_DAY_SQL = """
select
    format('u{:06d}', "user") as user_id,
    format('i{:04d}', item) as item_id,
    event_ts,
    (['impression', 'click', 'cart', 'purchase'])[kind + 1] as event_type,
    value,
    format('u{:06d}-{:02d}', "user", session) as session_id,
    format('u{:06d}-{:02d}-{:02d}', "user", session, page) as request_id,
    slot as position,
    propensity
from read_parquet($parts)
where event_ts >= $start and event_ts < $end
order by event_ts, "user", slot, kind
"""


@dataclass(frozen=True)
class PageLog:
    """Shown pages in columns: P pages of K slots. Times are microseconds since 1970."""

    user: np.ndarray  # [P]
    session: np.ndarray  # [P] 0-based, of the user
    page: np.ndarray  # [P] 0-based, of the session
    shown_at: np.ndarray  # [P]
    items: np.ndarray  # [P, K]
    feedback: np.ndarray  # [P, K] Feedback codes
    propensity: np.ndarray  # [P, K] of each item in its slot given those above it
    reactions: np.ndarray  # [P, K, 3] from page to click, click to cart, cart to purchase
    candidates: np.ndarray  # [P, R] that the page was drawn from
    logits: np.ndarray  # [P, R] of the ranker that drew it


def write_log(shop: Storefront, n_users: int, start: date, days: int, seed: int, folder: Path) -> None:
    """Simulate the whole log into ``folder``: written aside, then renamed, so that a reader sees all or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".aside-"))
    try:
        (aside / "parts").mkdir()
        (aside / "pools").mkdir()
        population = []
        for first in range(0, n_users, CHUNK):
            pages, shoppers = simulate(shop, range(first, min(first + CHUNK, n_users)), start, days, seed)
            pq.write_table(event_rows(pages, shop), aside / "parts" / f"{first:07d}.parquet")
            pq.write_table(pool_rows(pages), aside / "pools" / f"{first:07d}.parquet", compression="zstd")
            population.append(shoppers)
        write_days(aside / "parts", aside / "events", start, days)
        shutil.rmtree(aside / "parts")
        write_entities(shop, population, seed, aside)
        os.chmod(aside, 0o755)
        if not folder.exists():  # else another process was faster, with the same bytes
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@torch.no_grad()
def simulate(shop: Storefront, users: range, start: date, days: int, seed: int) -> tuple[PageLog, Shoppers]:
    """All sessions of the ``users`` (a chunk, numbered in the whole log): their pages, and the users after the last."""
    clock = np.random.default_rng([seed % 2**64, users.start])
    luck = seeded(seed, "log", users.start, device=shop.device)
    shoppers = shop.population(len(users), seeded(seed, "users", users.start, device=shop.device))
    starts = session_starts(len(users), shop.config.max_pages, days, clock)  # [U, sessions], -1 = none
    starts[starts >= 0] += _microseconds(start)
    logged = []
    for session in range(starts.shape[1]):
        active = np.flatnonzero(starts[:, session] >= 0)
        for page in _round(shop, shoppers, active, starts[active, session], session, luck, clock):
            logged.append(page)
    columns = {name: np.concatenate([getattr(page, name) for page in logged]) for name in PageLog.__annotations__}
    columns["user"] += users.start
    return PageLog(**columns), shoppers


def _round(
    shop: Storefront,
    shoppers: Shoppers,
    active: np.ndarray,
    shown_at: np.ndarray,
    session: int,
    luck: torch.Generator,
    clock: np.random.Generator,
) -> Iterator[PageLog]:
    """One session of each ``active`` row of ``shoppers``, page by page; their tastes are updated in place."""
    rows = torch.from_numpy(active).to(shop.device)
    state = shop.start_session(shoppers[rows], luck)
    bucket = draw_buckets(len(rows), luck)
    for page in range(shop.config.max_pages):
        candidates = shop.recall(state, luck)
        logits = production_logits(shop, state, candidates, bucket)
        chosen, propensity = plackett_luce(logits, shop.config.slots, luck)
        items = candidates.gather(1, chosen)
        feedback, leave, state = shop.step(state, items, luck)
        yield PageLog(
            user=rows.cpu().numpy(),
            session=np.full(len(rows), session),
            page=np.full(len(rows), page),
            shown_at=shown_at,
            items=items.cpu().numpy().astype(np.int32),
            feedback=feedback.cpu().numpy().astype(np.int8),
            propensity=propensity.cpu().numpy(),
            reactions=_uniform(clock, REACTION_SECONDS, (*items.shape, 3)),
            candidates=candidates.cpu().numpy().astype(np.int32),
            logits=logits.cpu().numpy(),
        )
        shoppers.taste[rows] = state.shoppers.taste
        stay = torch.rand(len(rows), generator=luck, device=shop.device) >= leave
        kept = stay.cpu().numpy()
        shown_at = (shown_at + _uniform(clock, PAGE_SECONDS, shown_at.shape))[kept]
        rows, state, bucket = rows[stay], state[stay], bucket[stay]
        if not len(rows):
            return


def session_starts(n_users: int, max_pages: int, days: int, clock: np.random.Generator) -> np.ndarray:
    """Start times of 1 + Poisson(4) sessions a user, [U, sessions] microseconds from the log's start; -1 = none.

    Uniform over the log given that sessions keep their distance and the last one still fits; a user has no more
    sessions than fit.
    """
    longest = int((max_pages * PAGE_SECONDS[1] + 3 * REACTION_SECONDS[1]) * SECOND)
    gap = longest + BETWEEN_SESSIONS
    span = days * 86_400 * SECOND - longest
    counts = np.minimum(1 + clock.poisson(MORE_SESSIONS, n_users), 1 + span // gap)  # [U]
    order = np.arange(counts.max())
    exists = order < counts[:, None]
    uniform = np.sort(np.where(exists, clock.random(exists.shape), 2.0), axis=1)
    # Uniform points on the span without the gaps, with the gaps put back: the exact law, without rejection.
    starts = (uniform * (span - (counts - 1) * gap)[:, None]).astype(np.int64) + order * gap
    return np.where(exists, starts, -1)


def event_rows(pages: PageLog, shop: Storefront) -> pa.Table:
    """The facts of the pages, sorted by time; kind 0 is an impression, 1 a click, 2 a cart, 3 a purchase."""
    price = _prices(shop)
    kinds = ((0, Feedback.SKIP), (1, Feedback.CLICK), (2, Feedback.CART), (3, Feedback.PURCHASE))
    parts = []
    for kind, least in kinds:
        page, slot = np.nonzero(pages.feedback >= least)
        item = pages.items[page, slot]
        times = pages.shown_at[page] + pages.reactions[page, slot, :kind].sum(1)
        parts.append(
            {
                "user": pages.user[page].astype(np.int32),
                "session": pages.session[page].astype(np.int16),
                "page": pages.page[page].astype(np.int16),
                "slot": slot.astype(np.int32),
                "item": item,
                "kind": np.full(len(page), kind, dtype=np.int8),
                "event_ts": times,
                "value": price[item] if kind == 3 else np.full(len(page), np.nan),
                "propensity": pages.propensity[page, slot].astype(np.float64)
                if kind == 0
                else np.full(len(page), np.nan),
            }
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    by_time = np.argsort(columns["event_ts"], kind="stable")
    arrays = {name: pa.array(values[by_time], from_pandas=True) for name, values in columns.items()}  # NaN → null
    arrays["event_ts"] = arrays["event_ts"].cast(pa.timestamp("us", tz="UTC"))
    return pa.table(arrays)


def pool_rows(pages: PageLog) -> pa.Table:
    """What each request could have shown, one row a page."""
    names = pa.array([f"i{number:04d}" for number in range(int(pages.candidates.max(initial=0)) + 1)])
    offsets = np.arange(len(pages.page) + 1, dtype=np.int32) * pages.candidates.shape[1]
    items = pa.DictionaryArray.from_arrays(pa.array(pages.candidates.ravel()), names)
    request = np.strings.mod("u%06d", pages.user)
    for number in (pages.session, pages.page):
        request = np.strings.add(request, np.strings.mod("-%02d", number))
    return pa.table(
        {
            "request_id": pa.array(request, pa.string()),
            "item_ids": pa.ListArray.from_arrays(offsets, items.dictionary_decode()),
            "logits": pa.ListArray.from_arrays(offsets, pa.array(pages.logits.ravel())),
        }
    )


def write_days(parts: Path, out: Path, start: date, days: int) -> None:
    """Sort the spilled rows into one file a day; a day without events has none."""
    out.mkdir()
    midnight = datetime(start.year, start.month, start.day, tzinfo=UTC)
    with connect() as con:
        con.execute(
            "set threads = 1"
        )  # the rows' grouping in the file, and so its bytes, must not depend on the machine
        for day in (midnight + timedelta(days=n) for n in range(days)):
            path = out / f"{day:%Y-%m-%d}.parquet"
            con.execute(
                f"copy ({_DAY_SQL}) to $path (format parquet, compression zstd)",
                {"parts": f"{parts}/*.parquet", "start": day, "end": day + timedelta(days=1), "path": str(path)},
            )
            if not pq.read_metadata(path).num_rows:
                path.unlink()


def write_entities(shop: Storefront, population: list[Shoppers], seed: int, folder: Path) -> None:
    """``items.parquet``, ``users.parquet`` and the hidden ``truth/population.safetensors``."""
    observed = torch.cat([shop.x, torch.stack([shop.badge, shop.rating, shop.price.log()], dim=1)], dim=1)  # [I, d+3]
    numbers = range(shop.config.n_items)
    items = {
        "item_id": [f"i{n:04d}" for n in numbers],
        "title": [f"Item {n}" for n in numbers],
        "category": [f"Category {c + 1}" for c in shop.category.tolist()],
        "price": _prices(shop),
        "features": _lists(observed),
    }
    pq.write_table(pa.table(items), folder / "items.parquet", compression="zstd")
    hidden = {
        name: torch.cat([getattr(shoppers, name) for shoppers in population]).cpu().contiguous()
        for name in Shoppers.__annotations__
    }
    home = hidden["home"]  # [U, d]
    noise = torch.randn(home.shape, generator=seeded(seed, "portrait")) / home.shape[1] ** 0.5
    users = {
        "user_id": [f"u{n:06d}" for n in range(len(home))],
        "features": _lists(F.normalize(home + PORTRAIT_NOISE * noise, dim=1)),
    }
    pq.write_table(pa.table(users), folder / "users.parquet", compression="zstd")
    (folder / "truth").mkdir()
    save_file(hidden, folder / "truth" / "population.safetensors")


def _prices(shop: Storefront) -> np.ndarray:
    """Prices [I] in cents' steps."""
    prices: np.ndarray = shop.price.cpu().double().numpy().round(2)
    return prices


def _lists(rows: torch.Tensor) -> pa.Array:
    """Rows of a matrix as a list column."""
    values = rows.cpu().contiguous()
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, values.numpy().ravel())


def _uniform(clock: np.random.Generator, seconds: tuple[float, float], shape: tuple[int, ...]) -> np.ndarray:
    return clock.integers(int(seconds[0] * SECOND), int(seconds[1] * SECOND), shape)


def _microseconds(day: date) -> int:
    return (day - date(1970, 1, 1)).days * 86_400 * SECOND
