"""Counter-based random numbers: each draw depends on a key and a name only.

A sample therefore does not depend on the batch or on the order of draws. This module and the whole
package use only operations that IEEE 754 rounds correctly (+ - * / sqrt floor compare) and integer
arithmetic: no exp, sin or pow. Vectorised loops, their remainders and different numbers of threads
then give the same bits.
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


def splitmix64(x: Array) -> Array:
    """Return the SplitMix64 hash (Steele et al. 2014) of uint64 values of any shape."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@cache
def hash_name(name: str) -> np.uint64:
    """Return a name as a 64-bit number: two CRC-32s, the same in every Python process."""
    data = name.encode()
    return np.uint64((zlib.crc32(data) << 32) | zlib.crc32(data[::-1] + b"."))


@dataclass(frozen=True)
class Draws:
    """One random stream per row; `key` is uint64 (N,). A new name leaves all other draws as is."""

    key: Array

    @classmethod
    def start(cls, seed: int, name: str, counter: ArrayLike) -> Draws:
        """Return the streams of `name` for the counters (N,); the seed may be any integer."""
        base = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) + GOLDEN
        base = splitmix64(base) ^ hash_name(name)
        return cls(splitmix64(splitmix64(base) + np.asarray(counter, dtype=np.uint64) * GOLDEN))

    def child(self, name: str, number: ArrayLike = 0) -> Draws:
        """Return derived streams, one per row, identified by a name and a number."""
        return Draws(splitmix64(self.bits(name) + np.asarray(number, dtype=np.uint64) * GOLDEN))

    def rows(self, index: Any) -> Draws:
        """Return the streams of some rows."""
        return Draws(self.key[index])

    def bits(self, name: str) -> Array:
        """Return random bits, uint64 (N,)."""
        return splitmix64(self.key ^ hash_name(name))

    def uniform(self, name: str, low: ArrayLike = 0.0, high: ArrayLike = 1.0) -> Array:
        """Return uniform draws in [low, high), float64 (N,)."""
        unit = (self.bits(name) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return np.asarray(low) + (np.asarray(high) - np.asarray(low)) * unit

    def normal(self, name: str, mean: ArrayLike = 0.0, sd: ArrayLike = 1.0) -> Array:
        """Return approximately normal draws within 3.5 sd of the mean, float64 (N,).

        A draw is the sum of four 16-bit uniform numbers, scaled by their variance (1/3).
        """
        bits, total = self.bits(name), np.zeros(len(self.key))
        for shift in (0, 16, 32, 48):
            part = (bits >> np.uint64(shift)) & np.uint64(0xFFFF)
            total = total + part.astype(np.float64) * 2.0**-16
        return np.asarray(mean) + np.asarray(sd) * ((total - 2.0) * 1.7320508)

    def bernoulli(self, name: str, p: ArrayLike) -> Array:
        """Return draws that are true with probability p, bool (N,)."""
        return self.uniform(name) < np.asarray(p)

    def categorical(self, name: str, weights: tuple[float, ...]) -> Array:
        """Return indices drawn with these weights, which sum to 1; int64 (N,)."""
        u, chosen, edge = self.uniform(name), np.zeros(len(self.key), dtype=np.int64), 0.0
        for weight in weights[:-1]:
            edge += weight
            chosen = chosen + (u >= edge)
        return chosen

    def white_noise(self, name: str, height: int, width: int) -> torch.Tensor:
        """Return white noise of mean 0 and variance 1, float32 (N, height, width).

        A value is the sum of the four bytes of a 32-bit hash (lowbias32, Wellons 2018).
        """
        keys = (self.bits(name) & np.uint64(0xFFFFFFFF)).astype(np.uint32)[:, None]
        x = np.arange(height * width, dtype=np.uint32)[None] * np.uint32(0x9E3779B1) + keys
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x ^= x >> np.uint32(shift)
            x *= np.uint32(factor)
        x ^= x >> np.uint32(16)
        low_bytes = np.uint32(0x00FF00FF)
        pairs = (x & low_bytes) + ((x >> np.uint32(8)) & low_bytes)  # two sums of two bytes
        total = ((pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16))).view(np.int32)
        noise = torch.from_numpy(total).to(torch.float32).sub_(510.0).mul_(1.0 / 147.8)
        return noise.view(-1, height, width)
