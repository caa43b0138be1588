"""One real run of everything, through the command line, that many tests look at."""

import atexit
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from models import AGENTS
from pipeline.experiment import PROJECT, Experiment, load_experiment
from pipeline.plan import Plan

# DuckDB 2.0's bindings report "leaks" when the interpreter ends, after pytest's closing line.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # ranx: compiling it takes minutes, our rankings are small
atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno()))

TINY = {
    "name": "tiny",
    "source": {"kind": "storefront", "users": 60, "days": 8, "start": "2024-01-01", "seed": 3},
    "partitions": {"grain": "day", "start": "2024-01-01", "end": "2024-01-09"},
    "splits": {"validation": "2024-01-06", "test": "2024-01-07"},
    "agents": {name: {} for name in AGENTS},
    "seeds": [11],
    "profile": "demo",
    "budget": {
        "gradient_steps": 4,
        "batch_size": 32,
        "validate_every": 2,
        "simulator_steps": 3,
        "bootstrap": 100,
        "proof_logs": 20,
    },
}


@dataclass(frozen=True)
class Run:
    """A folder with an experiment, its storage and its own Dagster home."""

    folder: Path
    experiment: Experiment
    first: subprocess.CompletedProcess[str]

    @property
    def plan(self) -> Plan:
        return Plan(self.experiment, self.folder / "storage")

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return command(self.folder, *arguments, **environment)


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m pipeline`` with the folder's experiment and storage."""
    return python(folder, "-m", "pipeline", *arguments, **environment)


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that sees the folder's experiment, storage and Dagster home, and no other."""
    home = folder / "dagster"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text((PROJECT / "storage" / "dagster" / "dagster.yaml").read_text())
    own = {
        "EXPERIMENT": str(folder / "experiment.yaml"),
        "HINDSIGHT_STORAGE": str(folder / "storage"),
        "DAGSTER_HOME": str(home),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def write_experiment(folder: Path, document: dict[str, object]) -> Experiment:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return load_experiment(str(path))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All agents on a small storefront, from nothing to the report."""
    folder = tmp_path_factory.mktemp("tiny")
    experiment = write_experiment(folder, TINY)
    first = command(folder, "demo")
    assert first.returncode == 0, first.stdout + first.stderr
    return Run(folder, experiment, first)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real logs; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("HINDSIGHT_TEST_DATA") or PROJECT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real logs at {folder}: set HINDSIGHT_TEST_DATA")
    return folder
