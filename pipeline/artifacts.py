"""Run folders: the weights and settings of one agent and seed, and how to get the agent back. No pickled objects."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from models.base import Agent, AgentConfig, Task
from pipeline.errors import ConfigError, StorageError
from pipeline.experiment import explain
from pipeline.tuning import GRID

WEIGHTS, CONFIG, CHECKPOINT = "weights.safetensors", "config.json", "checkpoint.pt"
NOT_OF_THE_CONFIG = {"agent", "class", GRID}  # keys of an agent's settings that say which it is and how it is tuned


@runtime_checkable
class Weighted(Protocol):
    """An agent with weights, trained by gradient steps or fitted elsewhere."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None: ...


def agent_config(name: str, target: str, settings: dict[str, Any]) -> AgentConfig:
    """The validated settings of an agent; ``target`` is ``module:ConfigClass``. Raises ConfigError for bad settings."""
    module, _, class_name = target.partition(":")
    try:
        config_class: type[AgentConfig] = getattr(import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"agents.{name}: cannot load {target!r} ({error}); write class: module:ConfigClass") from None
    try:
        return config_class.model_validate({k: value for k, value in settings.items() if k not in NOT_OF_THE_CONFIG})
    except ValidationError as error:
        raise ConfigError(f"agents.{name}: {explain(error, config_class)}") from None


def save_agent(folder: Path, agent: Agent, target: str, config: AgentConfig, seed: int) -> None:
    """Write what ranking needs: safetensors weights (none for a heuristic) and JSON settings."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = agent.state_dict() if isinstance(agent, Weighted) else {}
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, folder / WEIGHTS)
    described = {"class": target, "seed": seed, "settings": config.model_dump(mode="json")}
    (folder / CONFIG).write_text(json.dumps(described, indent=1, sort_keys=True), encoding="utf-8")


def load_agent(folder: Path, task: Task) -> tuple[Agent, AgentConfig, int]:
    """The agent of a run folder, ready to rank, with its settings and seed."""
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
    except OSError as error:
        raise StorageError(f"No trained agent in {folder} ({error}). Materialize its asset first.") from None
    config = agent_config(folder.name, described["class"], described["settings"])
    agent = config.build(task, described["seed"])
    if isinstance(agent, Weighted):
        agent.load_state_dict(weights)
    return agent, config, described["seed"]


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the resume checkpoint atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{CHECKPOINT}"
    torch.save(state, aside)
    aside.replace(folder / CHECKPOINT)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The resume checkpoint of a run folder, or None."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state
