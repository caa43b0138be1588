"""Random weights in the shape and the format of Virtual Taobao's, for tests that need no published file."""

from pathlib import Path

import torch

from models.simulators.virtual_taobao import SHAPES


def save_weights(folder: Path, seed: int = 0, scale: float = 1.5) -> str:
    """Write the three files into ``folder``. A larger ``scale`` makes users and answers more certain."""
    random = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, shapes in SHAPES.items():
        state = {}
        for layer, (outputs, inputs) in enumerate(shapes):
            state[f"{2 * layer}.weight"] = scale / inputs**0.5 * torch.randn(outputs, inputs, generator=random)
            state[f"{2 * layer}.bias"] = torch.randn(outputs, generator=random)
        torch.save(state, folder / f"{name}_model.pt", _use_new_zipfile_serialization=False)
    return str(folder)
