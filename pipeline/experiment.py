"""The model of an experiment file, the only configuration. An unknown key is an error naming the nearest known one."""

import os
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from models import AGENTS, SIMULATORS, WORLDS
from models.feedback import Feedback
from pipeline.errors import ConfigError, nearest
from pipeline.source_settings import Source, Strict
from pipeline.tuning import GRID, trials

EXPERIMENTS = Path(__file__).parent / "experiments"
PROJECT = Path(__file__).parent.parent
RANKS_BY_A_USER_MODEL = "greedy_simulator"  # the registered agent whose weights are those of a user model
MYOPIC = "_discount_0"  # ends the name of an agent that is another one with the future removed


class Partitions(Strict):
    """Dagster's partitions and the files at rest."""

    grain: Literal["day", "month", "year"] = "day"
    start: date  # of the first period
    end: date  # exclusive

    @model_validator(mode="after")
    def _aligned(self) -> "Partitions":
        if self.end <= self.start:
            raise ValueError(f"partitions.end must come after its start, got {self.start} to {self.end}")
        for name, moment in (("start", self.start), ("end", self.end)):
            if (self.grain != "day" and moment.day != 1) or (self.grain == "year" and moment.month != 1):
                raise ValueError(f"partitions.{name}: {moment} is inside a {self.grain}; take its first day")
        return self


class Ingest(Strict):
    max_rejects: float = Field(0.05, ge=0, le=1)  # share of a raw file's records that may be refused as dirt


class Sessions(Strict):
    gap_minutes: float = Field(30, gt=0)  # inactivity that ends a session, where the log has no session id of its own
    max_hours: float = Field(24, gt=0, le=24)  # a longer session is cut
    rows: int = Field(5, ge=1, le=50)  # of a page
    cols: int = Field(2, ge=1, le=50)

    @property
    def page_size(self) -> int:
        return self.rows * self.cols


class Rewards(Strict):
    skip: float = 0.0
    click: float = 1.0
    favorite: float = 1.0
    cart: float = 1.0
    purchase: float = 5.0

    def by_code(self) -> tuple[float, ...]:
        """Reward of each Feedback code, NONE first."""
        return (0.0, *(float(getattr(self, code.name.lower())) for code in Feedback if code))


class Splits(Strict):
    """The two cut-offs in global time: instants, or shares of the sessions in the order of their start."""

    validation: float | datetime = 0.7  # where validation starts
    test: float | datetime = 0.85

    @model_validator(mode="after")
    def _ordered(self) -> "Splits":
        if isinstance(self.validation, float) != isinstance(self.test, float):
            raise ValueError("splits: give both cut-offs as shares or both as instants")
        if isinstance(self.validation, float) and not 0 < self.validation < float(self.test) < 1:  # type: ignore[arg-type]
            raise ValueError(f"splits: need 0 < validation < test < 1, got {self.validation} and {self.test}")
        return self


class History(Strict):
    positives: int = Field(10, ge=1, le=500)  # N: last clicked and purchased items that a state keeps
    pages: int = Field(5, ge=1, le=50)  # P: earlier pages of the session that a state keeps


class Embeddings(Strict):
    """Truncated SVD of the shifted PPMI matrix over training sessions."""

    dim: int = Field(50, ge=2, le=512)
    shift: float = Field(1.0, ge=1)  # k of log k: negatives in word2vec's terms
    seed: int = 11


class Hindsight(Strict):
    strategy: Literal["final", "future", "random"] = "final"  # how the hindsight horizon is sampled
    embedding_components: int = Field(8, ge=0, le=64)  # PCA of the item embeddings inside the measurement
    seed: int = 11


class Simulators(Strict):
    """User models by name on two sides, each with the settings that differ from its defaults.

    ``class`` names one of one's own. What is fitted on one side is never judged by itself: the sides see different
    windows of the log and have different architectures.
    """

    train: dict[str, dict[str, Any]] = Field({"rnn": {}})  # fitted on the training window; agents may train in these
    judge: dict[str, dict[str, Any]] = Field({"attention": {}})  # fitted on later sessions; agents are judged there
    members: int = Field(3, ge=3)  # models of each ensemble, of different seeds; the first one acts
    seed: int = 11  # of the first

    @model_validator(mode="after")
    def _two_sides(self) -> "Simulators":
        for side, models in (("train", self.train), ("judge", self.judge)):
            if not models:
                raise ValueError(f"simulators.{side} is empty; name at least one of {sorted(SIMULATORS)}")
            for name in models:
                if name in WORLDS:
                    raise ValueError(f"simulators.{side}: {name!r} is not fitted on a log; name one of "
                                     f"{sorted(SIMULATORS)}")  # fmt: skip
                if name not in SIMULATORS and "class" not in models[name]:
                    raise ValueError(f"simulators.{side}: {name!r} is not a known user model; "
                                     f"{nearest(name, SIMULATORS)}")  # fmt: skip
        classes = [{simulator_class(n, s) for n, s in models.items()} for models in (self.train, self.judge)]
        if both := {*self.train} & {*self.judge}:
            raise ValueError(f"simulators: {sorted(both)[0]!r} is on both sides; give the judge another architecture")
        if classes[0] & classes[1]:
            raise ValueError(f"simulators: {sorted(classes[0] & classes[1])[0]} is the class on both sides; give the "
                             "judge another architecture")  # fmt: skip
        return self

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        return {**self.train, **self.judge}

    def side(self, name: str) -> str:
        return "train" if name in self.train else "judge"


def simulator_class(name: str, settings: dict[str, Any]) -> str:
    """``module:ConfigClass`` of a user model."""
    return str(settings.get("class") or SIMULATORS[name])


def agent_class(name: str, settings: dict[str, Any]) -> str:
    """``module:ConfigClass`` of an agent: one's own ``class``, that of the registered ``agent``, or that of its name.

    Raises ConfigError for a name that is not registered.
    """
    if "class" in settings:
        if "agent" in settings:
            raise ConfigError(f"agents.{name}: both agent and class are given; leave one of them out.")
        return str(settings["class"])
    registered = str(settings.get("agent", name))
    if registered not in AGENTS:
        where = f"agents.{name}.agent: {registered!r}" if "agent" in settings else f"agents: {name!r}"
        raise ConfigError(f"{where} is not a known agent; {nearest(registered, AGENTS)}")
    return AGENTS[registered]


class Gate(Strict):
    """What a user model must reach on sessions later than those that it was fitted on, before it may judge."""

    calibration_tolerance: float = Field(0.15, gt=0)  # of the positive rate: what the calibration error may exceed
    max_length_ks: float = Field(0.15, gt=0, le=1)  # Kolmogorov-Smirnov distance of the session lengths
    max_rate_gap: float = Field(0.15, gt=0)  # relative gap of the positive rates of simulated and logged sessions
    min_sessions: int = Field(100, ge=10)  # of the window that judges it
    deciles: int = Field(10, ge=2, le=50)  # groups of items by popularity


class Rollouts(Strict):
    sessions: tuple[Literal["natural", "short", "long", "high_variance"], ...] = ("natural", "short", "long")
    recall: Literal["similar", "related", "popular", "uniform"] = "similar"  # how a page's candidates are found
    pool: int = Field(50, ge=1)  # candidates a page
    min_support: int = Field(5, ge=1)  # showings in the fit window below which an item counts as out of support


class Ope(Strict):
    """Off-policy evaluation: what a logged page could have shown, and how a ranker becomes a policy."""

    pool: int = Field(50, ge=2, le=500)  # candidates a page where the log does not say them
    temperature: float = Field(1.0, gt=0)  # of the policy that a ranker is smoothed into; its scores have deviation 1
    pages: int = Field(5_000, ge=100)  # logged pages, at most, in whole sessions
    fit_pages: int = Field(3_000, ge=100)  # that a behaviour policy is fitted on where propensities were not logged


class Budget(Strict):
    """What every gradient agent may spend: equal for all of them."""

    gradient_steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)  # pages
    max_seconds: float = Field(gt=0)  # a cap a seed
    validate_every: int = Field(ge=1)  # gradient steps
    validation_sessions: int = Field(ge=1)
    patience: int = Field(ge=1)  # validations without a gain before stopping
    simulator_steps: int = Field(ge=1)
    rollout_users: int = Field(ge=1)  # episodes of each agent and seed, at most
    bootstrap: int = Field(ge=100)  # resamples
    proof_logs: int = Field(ge=20)  # replications that the off-policy estimators are proved on, in the storefront


PROFILES = {
    "demo": Budget(
        gradient_steps=250,
        batch_size=128,
        max_seconds=300,
        validate_every=125,
        validation_sessions=300,
        patience=3,
        simulator_steps=400,
        rollout_users=800,
        bootstrap=1_000,
        proof_logs=220,  # one in fifty gets no verdict, which leaves more than 200
    ),
    "standard": Budget(
        gradient_steps=5_000,
        batch_size=256,
        max_seconds=3_600,
        validate_every=500,
        validation_sessions=2_000,
        patience=4,
        simulator_steps=3_000,
        rollout_users=4_000,
        bootstrap=10_000,
        proof_logs=440,
    ),
    "paper": Budget(
        gradient_steps=200_000,
        batch_size=256,
        max_seconds=86_400,
        validate_every=5_000,
        validation_sessions=10_000,
        patience=10,
        simulator_steps=200_000,
        rollout_users=20_000,
        bootstrap=10_000,
        proof_logs=1_000,
    ),
}


class Experiment(Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    description: str = ""
    source: Source
    partitions: Partitions
    ingest: Ingest = Ingest()
    sessions: Sessions = Sessions()
    rewards: Rewards = Rewards()
    splits: Splits = Splits()
    history: History = History()
    embeddings: Embeddings = Embeddings()
    hindsight: Hindsight = Hindsight()
    simulators: Simulators = Simulators()
    gate: Gate = Gate()
    rollouts: Rollouts = Rollouts()
    ope: Ope = Ope()
    agents: dict[str, dict[str, Any]]  # name → settings that differ from the defaults; see agent_class and tuning.py
    seeds: tuple[int, ...] = (11, 13, 17, 19, 23)
    profile: Literal["demo", "standard", "paper"] = "standard"
    budget: dict[str, float] = Field({})  # overrides of the profile
    device: Literal["cpu", "cuda"] = "cpu"
    reference: str = "popularity"  # the agent that the others are compared with

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        for name in self.agents:
            self.agent_class(name)
            self.simulator_of(name)
            if name.endswith(MYOPIC) and self.agents[name].get("discount") != 0:
                raise ConfigError(f"agents.{name}: the name promises the discount 0; add discount: 0 or rename it.")
        self._equal_tuning()
        if self.rollouts.pool < self.sessions.page_size:
            raise ValueError(f"rollouts.pool: {self.rollouts.pool} candidates cannot fill a page of "
                             f"{self.sessions.page_size}; raise it or make the page smaller")  # fmt: skip
        if self.reference not in self.agents:
            raise ValueError(f"reference: {self.reference!r} is not among the agents; add it or name another")
        self.budgets()
        return self

    def _equal_tuning(self) -> None:
        """All agents with a grid try as many settings: none may win because it was tuned for longer."""
        tried = {name: len(trials(name, settings)) for name, settings in self.agents.items() if GRID in settings}
        if len(set(tried.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in tried.items())
            raise ConfigError(f"agents: their grids have unequal numbers of trials ({counts}); tuning budgets must be "
                              "equal, so give each as many.")  # fmt: skip

    def budgets(self) -> Budget:
        """The profile's budget with this experiment's overrides."""
        return Budget.model_validate(PROFILES[self.profile].model_dump() | self.budget)

    def agent_class(self, name: str) -> str:
        """``module:ConfigClass`` of an agent of the experiment."""
        return agent_class(name, self.agents[name])

    def simulator_of(self, name: str) -> str | None:
        """The user model that an agent ranks by, None for one that needs none.

        It is of the train side, the first one there where the agent names none: who ranks by the judge's own
        probabilities knows its judge. Raises ConfigError for another.
        """
        if self.agent_class(name) != AGENTS[RANKS_BY_A_USER_MODEL]:
            return None
        if "user_model" in self.agents[name]:
            raise ConfigError(f"agents.{name}.user_model: the fitted user model says that itself; name it by simulator")
        simulator = str(self.agents[name].get("simulator") or next(iter(self.simulators.train)))
        if simulator in self.simulators.judge:
            raise ConfigError(f"agents.{name}.simulator: {simulator!r} is on the judge's side, so it would know its "
                              f"judge; name one of {sorted(self.simulators.train)}")  # fmt: skip
        if simulator not in self.simulators.train:
            raise ConfigError(f"agents.{name}.simulator: {simulator!r} is not a user model of the train side; "
                              f"{nearest(simulator, self.simulators.train)}")  # fmt: skip
        return simulator


def load_experiment(name_or_path: str, raw: str | None = None) -> Experiment:
    """Read an experiment by its name or by the path of a YAML file.

    ``raw`` replaces ``source.path``. Raises ConfigError with the file, the key and the remedy.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = EXPERIMENTS / f"{name_or_path}.yaml"
        if not path.exists():
            known = [p.stem for p in EXPERIMENTS.glob("*.yaml")]
            raise ConfigError(f"There is no experiment {name_or_path!r}; {nearest(name_or_path, known)}")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the experiment file {path}: {error.strerror}. Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold keys and values (name, source, agents …); it holds {document!r}.")
    if raw and isinstance(document.get("source"), dict):
        if document["source"].get("kind") == "storefront":
            raise ConfigError(f"RAW={raw}: the storefront makes its own log; drop RAW or choose another EXPERIMENT.")
        document["source"]["path"] = raw
    try:
        return Experiment.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Experiment)}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def experiment_from_environment() -> Experiment:
    """The experiment that EXPERIMENT (default ``demo``) and RAW name."""
    return load_experiment(os.environ.get("EXPERIMENT") or "demo", os.environ.get("RAW") or None)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """A pydantic error as sentences: the key, the value, and the nearest known key where one was mistyped."""
    sentences = []
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            known = _keys_at(model, detail["loc"][:-1])
            sentences.append(f"unknown key {where!r}; {nearest(str(detail['loc'][-1]), known)}")
        elif detail["type"] == "missing":
            sentences.append(f"the key {where!r} is missing; add it")
        elif detail["type"] == "value_error":
            sentences.append(str(detail["ctx"]["error"]))
        else:
            sentences.append(f"{where} = {detail['input']!r}: {detail['msg']}")
    return ". ".join(sentences)


def _keys_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The known keys of the settings that ``location`` names."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:  # the tag of a discriminated union: step into the member with that kind
            continue
        annotation: Any = field.annotation
        members = [m for m in getattr(annotation, "__args__", [annotation]) if _is_model(m)]
        tags = [
            m for m in members if "kind" in m.model_fields and location[-1] in str(m.model_fields["kind"].annotation)
        ]
        if tags or members:
            model = (tags or members)[0]
    return list(model.model_fields)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def utc(moment: date | datetime) -> datetime:
    """A date or a naive instant read as UTC."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
