"""What an experiment file says of its log: one model a source, told apart by ``kind``."""

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.errors import nearest


class Strict(BaseModel):
    """Frozen settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StorefrontSource(Strict):
    """The embedded shop. Its log is generated; the same settings always give the same bytes."""

    kind: Literal["storefront"]
    users: int = Field(2000, ge=1, le=1_000_000)
    days: int = Field(30, ge=1, le=3650)
    start: date = date(2024, 1, 1)
    seed: int = 7
    myopic_world: bool = False  # the negative control: nothing that is shown changes the future


class FolderSource(Strict):
    """A log that lies in a folder."""

    path: Path | None = None  # the folder; RAW= on the command line wins


class MovieLensSource(FolderSource):
    """A folder of MovieLens files in any of the publisher's three formats."""

    kind: Literal["movielens"]
    positive_above: float = 3.0  # ratings above it count as clicks, the others as skips


class TaobaoSource(FolderSource):
    """Taobao UserBehavior: page views, favourites, carts and purchases."""

    kind: Literal["taobao"]
    first_day: date | None = None  # days in China, both included; what lies outside is left out
    last_day: date | None = None


class YooChooseSource(FolderSource):
    """YooChoose (RecSys Challenge 2015): clicks are impressions, buys are purchases."""

    kind: Literal["yoochoose"]
    buying_sessions: bool = False  # keep only sessions with a purchase, as GoalRec does


class KuaiRandSource(FolderSource):
    """KuaiRand Pure, 1K or 27K: impressions with their feedback."""

    kind: Literal["kuairand"]
    positive: Literal["watched", "long_view", "click"] = "watched"  # what counts as a click
    positive_above: float = 0.8  # of "watched": the share of the video that was played
    session: Literal["day", "gap"] = "day"  # a user's local day, or sessions.gap_minutes
    random_log: bool = True  # read the randomised exposures too, where their files are there


class Rl4rsSource(FolderSource):
    """RL4RS: slates of nine items with their purchases."""

    kind: Literal["rl4rs"]


class OpenBanditSource(FolderSource):
    """The Open Bandit Dataset, from a folder or from the installed ``obp`` package."""

    kind: Literal["open_bandit"]
    policy: Literal["random", "bts"] = "random"  # whose log it is
    campaign: Literal["all", "men", "women"] = "all"


EventType = Literal["impression", "click", "cart", "favorite", "purchase", "rating", "watch"]
Action = Literal["click", "cart", "favorite", "purchase"]


def _listed(value: Any) -> Any:
    """One thing where a list of them is meant is a list of one."""
    return (value,) if isinstance(value, str | dict) else value


def _written(value: Any) -> Any:
    """A code as the log writes it: YAML reads 0, 1.5, yes and null as other things than text."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, int | float) else value


def _short(key: str) -> BeforeValidator:
    """The short form of a part: the value of its main key."""
    return BeforeValidator(lambda given: given if isinstance(given, dict | BaseModel) else {key: given})


Column = Annotated[str, Field(min_length=1)]
Columns = Annotated[tuple[Column, ...], BeforeValidator(_listed), Field(min_length=1)]
Code = Annotated[str, BeforeValidator(_written)]
Codes = Annotated[tuple[Code, ...], BeforeValidator(_listed)]


class Part(Strict):
    """A part of ``source`` with the kind mapping. A column is a name, or a path into a nested one (``user.id``)."""

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            if key not in cls.model_fields:
                where = cls.__name__.lower()
                raise ValueError(f"source: unknown key {key!r} in {where}; {nearest(str(key), cls.model_fields)}")
        return given


class Time(Part):
    """How a time is written. Without unit and format it is ISO 8601, or a time stamp of Parquet."""

    column: Columns  # several are joined with a space: [date, clock]
    unit: Literal["s", "ms", "us", "ns"] | None = None  # since 1970 in UTC
    format: str | None = None  # as strptime has it: "%d.%m.%Y %H:%M"
    zone: str = "UTC"  # of times that name none

    @model_validator(mode="after")
    def _one_way(self) -> "Time":
        if self.unit and (self.format or self.zone != "UTC"):
            also = f"the format {self.format!r}" if self.format else f"the zone {self.zone!r}"
            raise ValueError(
                f"source: time has the unit {self.unit!r}, a count since 1970 in UTC, and {also}; drop one"
            )
        return self


class Type(Part):
    """What kind of event a record is: always the same, or told by the codes in a column."""

    always: EventType | None = None
    column: Column | None = None
    map: dict[Code, EventType] = {}
    ignore: Codes = ()  # codes; "others" stands for all that map does not name

    @model_validator(mode="after")
    def _one_way(self) -> "Type":
        if (self.always is None) == (self.column is None) or bool(self.column) != bool(self.map):
            raise ValueError(
                "source: type is either an event type or a column with the map of its codes to event types"
            )
        if both := sorted(set(self.map) & set(self.ignore)):
            raise ValueError(f"source: type.map and type.ignore both name {both[0]!r}; drop one of them")
        return self


class Unpack(Part):
    """A list of events in each record: one column of objects, or parallel lists in several columns."""

    lists: Columns
    separator: str | None = Field(None, min_length=1)  # where a list is one string
    entry: str | None = None  # where an entry is one string, as "{sku}:{ts}": its parts are columns, list.sku, list.ts

    @model_validator(mode="after")
    def _parts_are_named(self) -> "Unpack":
        if self.entry is not None and entry_parts(self.entry) and len(self.lists) > 1:
            raise ValueError(
                f"source: unpack.entry {self.entry!r} is the form of one list, got {len(self.lists)} lists"
            )
        return self


class Shown(Part):
    """The list of items that was shown with a record: each is an impression. The other columns are parallel lists."""

    items: Column
    separator: str | None = Field(None, min_length=1)  # where a list is one string
    entry: str | None = None  # where an entry is one string, as "{item}-{click}": item, the keys below, and actions
    feedback: dict[Action, Column] = {}  # flags: which of the items were acted on
    value: Column | None = None
    position: Column | None = None  # default: 0, 1, 2 … in the order of the list
    propensity: Column | None = None
    category: Column | None = None
    brand: Column | None = None
    shop: Column | None = None

    @model_validator(mode="after")
    def _parts_are_known(self) -> "Shown":
        parts = entry_parts(self.entry) if self.entry is not None else ()
        known = ("item", *ATTRIBUTES, *ACTIONS)
        for part in parts:
            if part not in known:
                raise ValueError(f"source: shown.entry {self.entry!r} has the part {part!r}; {nearest(part, known)}")
            if part in self.feedback or (part in ATTRIBUTES and getattr(self, part)):
                raise ValueError(f"source: shown names {part!r} twice, as a key and in its entry; drop one of them")
        if parts and "item" not in parts:
            raise ValueError(f"source: shown.entry {self.entry!r} has no {{item}}; say where it is")
        return self

    @property
    def attributes(self) -> dict[str, str]:
        """The columns that run parallel to the items, flags aside."""
        return {name: column for name in ATTRIBUTES if (column := getattr(self, name)) is not None}

    @property
    def actions(self) -> set[str]:
        """What may have been done to a shown item."""
        return {*self.feedback, *(set(entry_parts(self.entry)) & set(ACTIONS) if self.entry else ())}


class Files(Part):
    """Files of one form, and how to read them."""

    files: str = Field(min_length=1)  # a glob below source.path; its folders named date=… give a column of that name
    format: Literal["csv", "tsv", "parquet", "json"] | None = None  # default: told by the ending; json is JSON lines
    separator: str | None = Field(None, min_length=1)
    quote: str | None = Field(None, max_length=1)  # default: '"' in CSV, none in TSV
    columns: Annotated[tuple[Column, ...], BeforeValidator(_listed)] = ()  # default: the first line names them
    encoding: str = "utf-8"

    @model_validator(mode="after")
    def _columns_differ(self) -> "Files":
        if twice := [name for name in self.columns if self.columns.count(name) > 1]:
            raise ValueError(f"source: columns names {twice[0]!r} twice; rename one of them")
        return self


class Events(Files):
    """Files of events: where the parts of an event lie."""

    user: Columns  # several are joined with "|"
    time: Annotated[Time, _short("column")]
    type: Annotated[Type, _short("always")] | None = None
    item: Column | None = None
    value: Column | None = None  # the price of a purchase, the stars of a rating, the share that was watched
    session: Columns | None = None
    request: Columns | None = None
    position: Column | None = None
    propensity: Column | None = None
    category: Column | None = None
    brand: Column | None = None
    shop: Column | None = None
    feedback: dict[Action, Column] = {}  # flags: what else was done to the item, each an event of its own
    unpack: Annotated[Unpack, _short("lists")] | None = None
    shown: Annotated[Shown, _short("items")] | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Events":
        if self.item is None and self.shown is None:
            raise ValueError(f"source: the events of {self.files} have no item; add it, or the list of items in shown")
        if self.type is None and self.item is not None:
            raise ValueError(f"source: the events of {self.files} have no type; add it, for example type: purchase")
        if self.item is None and self.feedback:
            raise ValueError(f"source: the feedback of {self.files} is to no item; add item, or put it under shown")
        if self.value is None and JUDGEMENTS & self.types:
            raise ValueError(f"source: the ratings in {self.files} have no value; name the column of their stars")
        return self

    @property
    def attributes(self) -> dict[str, str]:
        """The columns of what an event has besides its ids, type and time."""
        return {name: column for name in ATTRIBUTES if (column := getattr(self, name)) is not None}

    @property
    def types(self) -> set[str]:
        """The types of events that the files may hold."""
        of_type = {self.type.always, *self.type.map.values()} if self.type else set()
        of_list = {"impression", *self.shown.actions} if self.shown else set()
        return {str(kind) for kind in of_type if kind} | of_list | set(self.feedback)


class Items(Files):
    """Files of items. A negative price, and a number or a time that cannot be read, counts as missing."""

    item: Column
    title: Column | None = None
    category: Column | None = None
    brand: Column | None = None
    shop: Column | None = None
    price: Column | None = None
    listed: Annotated[Time, _short("column")] | None = None  # when it was released
    features: Annotated[tuple[Column, ...], BeforeValidator(_listed)] = ()  # numbers, or lists of numbers


class Users(Files):
    """Files of users."""

    user: Columns
    features: Annotated[tuple[Column, ...], BeforeValidator(_listed)] = ()


class MappingSource(FolderSource):
    """Anybody's own log: which files hold it, and where in them what is kept."""

    kind: Literal["mapping"]
    events: Annotated[tuple[Events, ...], BeforeValidator(_listed), Field(min_length=1)]
    items: Items | None = None
    users: Users | None = None
    pools: str | None = None  # Parquet files of request_id, item_ids and logits: what each request could have shown
    nulls: Codes = ("", "NULL", "null", "None", "NaN", "nan", "\\N")  # what stands where nothing is known
    positive_above: float | None = None  # ratings and watched shares above it count as clicks, the others as skips
    has_impressions: bool | None = None  # whether the log tells all that was shown; default: some type is impression

    @model_validator(mode="after")
    def _ratings_are_judged(self) -> "MappingSource":
        if self.positive_above is None and any(JUDGEMENTS & files.types for files in self.events):
            raise ValueError("source: the log has ratings; set positive_above (for one to five stars, 3 is usual)")
        return self


ATTRIBUTES = ("value", "position", "propensity", "category", "brand", "shop")  # of one item in a list
ACTIONS = ("click", "cart", "favorite", "purchase")
JUDGEMENTS = {"rating", "watch"}


def entry_parts(entry: str) -> tuple[str, ...]:
    """The names in a pattern like "{item}-{click}". Raises ValueError where they cannot be told apart."""
    parts = tuple(re.findall(r"{(\w+)}", entry))
    if not parts or len(set(parts)) < len(parts) or "}{" in entry or re.search("[{}]", re.sub(r"{\w+}", "", entry)):
        raise ValueError(
            f"source: entry {entry!r} is no pattern; write names in braces with text between: {{item}}-{{click}}"
        )
    return parts


Source = Annotated[
    StorefrontSource
    | MovieLensSource
    | TaobaoSource
    | YooChooseSource
    | KuaiRandSource
    | Rl4rsSource
    | OpenBanditSource
    | MappingSource,
    Field(discriminator="kind"),
]
