"""A fixed hash of pairs of integers: breaks ties and seeds the random ranker, the same on every machine."""

import torch
from torch import Tensor


def mix64(a: Tensor, b: Tensor) -> Tensor:
    """A fixed 64-bit hash of two int64 tensors that broadcast: splitmix64(splitmix64(a) xor b), as int64.

    splitmix64 is Steele, Lea and Flood's finaliser (OOPSLA 2014) after one golden-ratio increment.
    """
    return _splitmix64(_splitmix64(a) ^ b)


def _splitmix64(z: Tensor) -> Tensor:
    z = z - 0x61C8864680B583EB  # + 0x9E3779B97F4A7C15 modulo 2^64: int64 arithmetic wraps
    z = (z ^ _shift(z, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; that of int64 tensors copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(keys: Tensor, *counters: int, width: int) -> Tensor:
    """Uniform numbers in [0, 1), [B, width] float32, fixed by each of ``keys`` [B] int64 and the counters alone.

    A row is the same in any batch and on any device: common random numbers for whatever is compared.
    """
    for counter in counters:
        keys = mix64(keys, torch.full_like(keys, counter))
    bits = mix64(keys[:, None], torch.arange(width, device=keys.device)[None])  # [B, width]
    return (bits & 0xFFFFFF).float() / (1 << 24)
