"""Seeded mutations of bytes and texts, as a hostile or damaged file has them."""

import random
from collections.abc import Callable, Sequence

ABSURD = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 2**24)
ABSURD += (2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
NUMBERS = ("0", "-1", "1e400", "nan", "inf", "-0", "1e-400", "9" * 30, "0x10", "1_000", "٣", "½")
CHARACTERS = (
    "\0", "\r", "\n", "\t", "\x0b", "\x0c", "\x1a", "\x1b", "\x85", "\xa0", "\xad", "\u0130", "ß",
    "\u200b", "\u200f", "\u202e", "\u2028", "\u2029", "\ufeff", "\ufffd", "\ufffe", "\ud800",
    "\udfff", "\U0001f480", "\u0301", "ﬁ", "ǅ", "'", '"', "`", "\\", "<", ">", "&", "%", "{", "}",
    "[", "]", "(", ")", "*", "_", "#", "|", ":", ";", ",", ".", "-", "/", "~", "^", "=", "!", "?",
)  # fmt: skip


def _at(data: bytearray, rng: random.Random) -> int:
    """Return a place; half of them are in the first 1,024 bytes, where headers are."""
    end = len(data) if rng.random() < 0.5 else min(1024, len(data))
    return rng.randrange(max(1, end))


def _bits(data: bytearray, rng: random.Random, _: bytes) -> None:
    for _k in range(rng.choice((1, 1, 2, 8, 64))):
        if data:
            data[_at(data, rng)] ^= 1 << rng.randrange(8)


def _number(data: bytearray, rng: random.Random, _: bytes) -> None:
    """Overwrite a field of 1, 2 or 4 bytes with an absurd number, in either order."""
    size, at = rng.choice((1, 2, 2, 4, 4)), _at(data, rng)
    value = rng.choice(ABSURD) & (256**size - 1)
    data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _cut(data: bytearray, rng: random.Random, _: bytes) -> None:
    del data[_at(data, rng) :]


def _remove(data: bytearray, rng: random.Random, _: bytes) -> None:
    at = _at(data, rng)
    del data[at : at + rng.choice((1, 2, 3, 8, 100, 4000))]


def _repeat(data: bytearray, rng: random.Random, _: bytes) -> None:
    at = _at(data, rng)
    piece = data[at : at + rng.choice((1, 4, 16, 200, 3000))]
    times = min(rng.choice((1, 2, 10, 1000)), 1 + 60_000 // max(1, len(piece)))
    data[at:at] = piece * times


def _splice(data: bytearray, rng: random.Random, other: bytes) -> None:
    start, at = rng.randrange(max(1, len(other))), _at(data, rng)
    piece = other[start : start + rng.choice((2, 8, 64, 1000, 10**6))]
    data[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece


def _zeros(data: bytearray, rng: random.Random, _: bytes) -> None:
    at, size = _at(data, rng), rng.choice((1, 4, 64, 2000))
    data[at : at + size] = rng.choice((b"\0", b"\xff", b" ")) * size


def _random(data: bytearray, rng: random.Random, _: bytes) -> None:
    at = _at(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 4, 32)))


BYTES: tuple[Callable[[bytearray, random.Random, bytes], None], ...] = (
    *(_bits, _bits, _number, _number, _cut, _remove, _repeat, _splice, _zeros, _random),
)


def of_bytes(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Return the bytes after one to six mutations; chunks may come from others."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        rng.choice(BYTES)(changed, rng, rng.choice(others))
    return bytes(changed)


def of_text(text: str, rng: random.Random, others: Sequence[str], words: Sequence[str]) -> str:
    """Return the text after one to eight mutations, with ``words`` of its language put in."""
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, end = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        other = rng.choice(others)
        start = rng.randrange(len(other) + 1)
        odd = rng.choice((*CHARACTERS, *NUMBERS, *words))
        times = min(
            rng.choice((1, 1, 3, 30, 3000)), 1 + rng.choice((300, 300, 300, 12_000)) // len(odd)
        )
        line = text.rfind("\n", 0, at) + 1
        text = rng.choice(
            (
                text[:at] + odd * times + text[at:],
                text[:at] + odd * times + text[end:],
                text[:at] + text[end:],
                text[:end] + text[at : at + 4000] * min(times, 5) + text[end:],
                text[:at] + other[start : start + rng.choice((5, 50, 2000))] + text[at:],
                text[:at],
                text[:line] + odd * times + text[line:],
                text.replace("\n", rng.choice(("", " ", "\r\n", "\r", "\n\n", "\\n", "<br>"))),
                text.replace(rng.choice((" ", ":", "-")), odd[:2]),
                text.upper() if rng.random() < 0.5 else text.swapcase(),
            )
        )[:100_000]
    return text
