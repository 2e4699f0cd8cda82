"""Counter-based random numbers: every draw is a pure function of (key, name), so samples are free of batch and order.

Only operations that IEEE 754 rounds correctly (+ - * / sqrt floor compare) and integer arithmetic are used, here and
in the whole package: no exp, sin or pow. SIMD bodies, scalar tails and thread chunks then give the same bits.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: Array) -> Array:
    """SplitMix64's finaliser (Steele et al. 2014): uint64 -> uint64, any shape."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@cache
def code(name: str) -> np.uint64:
    """A draw's name as a 64-bit number (two CRC-32s: stable over Python processes, unlike hash)."""
    data = name.encode()
    return np.uint64((zlib.crc32(data) << 32) | zlib.crc32(data[::-1] + b"."))


@dataclass(frozen=True)
class Draws:
    """One stream a row; `key` is uint64 (N,). Names, not positions, tell draws apart: adding one moves no other."""

    key: Array

    @classmethod
    def start(cls, seed: int, name: str, counter: ArrayLike) -> Draws:
        """Streams of `name` for the counters (N,), whatever sign or size the seed has."""
        base = mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) + GOLDEN) ^ code(name)
        return cls(mix(mix(base) + np.asarray(counter, dtype=np.uint64) * GOLDEN))

    def child(self, name: str, number: ArrayLike = 0) -> Draws:
        """Streams below these, told apart by a name and a number a row."""
        return Draws(mix(self.bits(name) + np.asarray(number, dtype=np.uint64) * GOLDEN))

    def rows(self, index: Any) -> Draws:
        """The streams of some rows."""
        return Draws(self.key[index])

    def bits(self, name: str) -> Array:
        """uint64 (N,)."""
        return mix(self.key ^ code(name))

    def uniform(self, name: str, low: ArrayLike = 0.0, high: ArrayLike = 1.0) -> Array:
        """float64 (N,) in [low, high)."""
        unit = (self.bits(name) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return np.asarray(low) + (np.asarray(high) - np.asarray(low)) * unit

    def normal(self, name: str, mean: ArrayLike = 0.0, sd: ArrayLike = 1.0) -> Array:
        """float64 (N,), near-normal within 3.5 sd: the sum of four 16-bit uniforms (variance 1/3)."""
        bits, total = self.bits(name), np.zeros(len(self.key))
        for shift in (0, 16, 32, 48):
            total = (
                total
                + ((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.float64) * 2.0**-16
            )
        return np.asarray(mean) + np.asarray(sd) * ((total - 2.0) * 1.7320508)

    def chance(self, name: str, p: ArrayLike) -> Array:
        """bool (N,), true with probability p."""
        return self.uniform(name) < np.asarray(p)

    def pick(self, name: str, weights: tuple[float, ...]) -> Array:
        """int64 (N,): an index with these weights (they sum to 1)."""
        u, chosen, edge = self.uniform(name), np.zeros(len(self.key), dtype=np.int64), 0.0
        for weight in weights[:-1]:
            edge += weight
            chosen = chosen + (u >= edge)
        return chosen

    def planes(self, name: str, height: int, width: int) -> torch.Tensor:
        """float32 (N, height, width) of white noise, mean 0, variance 1: four bytes of a 32-bit hash summed."""
        keys = (self.bits(name) & np.uint64(0xFFFFFFFF)).astype(np.uint32)[:, None]
        x = np.arange(height * width, dtype=np.uint32)[None] * np.uint32(0x9E3779B1) + keys
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # lowbias32, Wellons 2018
            x ^= x >> np.uint32(shift)
            x *= np.uint32(factor)
        x ^= x >> np.uint32(16)
        pairs = (x & np.uint32(0x00FF00FF)) + (
            (x >> np.uint32(8)) & np.uint32(0x00FF00FF)
        )  # two sums of two bytes
        total = ((pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16))).view(np.int32)
        noise = torch.from_numpy(total).to(torch.float32).sub_(510.0).mul_(1.0 / 147.8)
        return noise.view(-1, height, width)
