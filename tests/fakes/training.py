"""Training, as a pure function: a state is a hash of the state and the batch before it, so that any change shows."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from fakes.chain import named
from polcommit import prf
from polcommit import transcript as hashes
from polcommit.encoding import digest, pack, tag, tagged_hash
from polcommit.records import (
    Fingerprint,
    ScalarEntry,
    StateIndex,
    TensorEntry,
)

Floats = tuple[float, ...]

RECIPE = "fake"
SOURCE = named("source of the recipe")
SHAPES = {
    "buffer/mean": ("buffer", (2,)),
    "optimizer/weight/momentum": ("optimizer", (2, 3)),
    "parameter/weight": ("parameter", (2, 3)),
}
ALIASES = (("parameter/tied", "parameter/weight"),)
SURGE = b"surge"
ENVIRONMENT = Fingerprint(items=(("kernels", "plain"), ("threads", "1")))
ELSEWHERE = Fingerprint(items=(("kernels", "plain"), ("threads", "2")))


@dataclass(frozen=True)
class State:
    """A full training state: little-endian float32 tensors by name, and one counter."""

    tensors: Mapping[str, bytes]
    counter: int

    def index(self) -> StateIndex:
        entries = tuple(
            TensorEntry(
                name=name, kind=SHAPES[name][0], dtype="float32", shape=SHAPES[name][1], content=blake3(data).digest()
            )
            for name, data in sorted(self.tensors.items())
        )
        scalars = ScalarEntry(values=pack((("counter", self.counter),)), aliases=ALIASES)
        return StateIndex(tensors=entries, scalars=scalars)

    def digest(self) -> bytes:
        return hashes.state_digest(self.index())

    def blobs(self) -> dict[bytes, bytes]:
        return {blake3(data).digest(): data for data in self.tensors.values()}


def floats(source: bytes, count: int) -> bytes:
    """So many float32 values that are sixteenths, from hashing."""
    return struct.pack(f"<{count}f", *((byte - 128) / 16 for byte in blake3(source).digest(count)))


def initial_state(seed: bytes) -> State:
    """W_0: of the seed alone, and equal everywhere."""
    sizes = {"buffer/mean": 2, "optimizer/weight/momentum": 6, "parameter/weight": 6}
    return State({name: floats(seed + name.encode(), size) for name, size in sizes.items()}, 0)


@dataclass(frozen=True)
class Outcome:
    """What one step gives."""

    state: State
    batch: bytes
    loss: float
    learning_rate: float
    clipped: bool
    skipped: bool
    gradient: bytes             # of the weight, which is the only one that is trained


def learning_rate(step: int) -> float:
    return 0.1 / step


def execute(
    before: State,
    step: int,
    batch: Sequence[bytes],
    seed: bytes,
    environment: Fingerprint,
    opened: bytes | None = None,
) -> Outcome:
    """One step. Its bits depend on everything that they depend on in training, the environment included.

    Forward and backward give the gradient, which is a little different in each environment; the update is a function
    of the state before and that gradient alone, or of the one that was `opened`. A sample that begins with SURGE moves
    the weights far away, for good: an honest run with a jump in it.
    """
    fed = tagged_hash("batch", prf.step_seed(seed, step, 0).to_bytes(8, "big"), *map(digest_of, batch))
    everything = b"".join(data for _, data in sorted(before.tensors.items()))
    source = named(fed.hex(), everything.hex(), before.counter, learning_rate(step))
    noise = named(source.hex(), digest(environment).hex())
    exact = values_of(floats(source + b"gradient", 6))
    gradient = packed(x * (1 + (byte - 128) / 2**20) for x, byte in zip(exact, noise, strict=False))
    applied = named(source.hex(), (opened or gradient).hex())
    tensors = {name: floats(applied + name.encode(), len(data) // 4) for name, data in before.tensors.items()}
    counter = before.counter + 1 + 1000 * sum(sample.startswith(SURGE) for sample in batch)
    tensors["parameter/weight"] = moved(tensors["parameter/weight"], far(counter))
    return Outcome(
        state=State(tensors, counter),
        batch=fed,
        loss=(source[0] + noise[0] / 2**16) / 256,
        learning_rate=learning_rate(step),
        clipped=source[1] % 2 == 0,
        skipped=False,
        gradient=gradient,
    )


def far(counter: int) -> float:
    """How far the weights were moved by then: 512 for each thousand of steps that were not, and 24 for each hundred."""
    return 512.0 * (counter // 1000) + 24.0 * (counter % 1000 // 100)


def moved(data: bytes, by: float) -> bytes:
    """The same float32 values, all of them further by so much."""
    return packed(value + by for value in values_of(data))


def values_of(data: bytes) -> Floats:
    """Float32 values."""
    return struct.unpack(f"<{len(data) // 4}f", data)


def packed(values: Iterable[float]) -> bytes:
    """The same back."""
    made = tuple(values)
    return struct.pack(f"<{len(made)}f", *made)


def norm(values: Iterable[float]) -> float:
    return math.sqrt(math.fsum(x * x for x in values))


def cosine(a: Floats, b: Floats) -> float:
    length = norm(a) * norm(b)
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


def minus(a: Floats, b: Floats) -> Floats:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def digest_of(sample: bytes) -> bytes:
    return blake3(tag("sample") + sample).digest()


def sketch(index: StateIndex, blobs: Callable[[bytes], bytes], seed: bytes) -> tuple[float, ...]:
    """Sums of the parameters under 64 sign vectors. Sixteenths add up exactly in any order."""
    sums = [0.0] * 64
    weights: list[float] = []
    for entry in index.tensors:
        if entry.kind == "parameter":
            data = blobs(entry.content)
            weights += struct.unpack(f"<{len(data) // 4}f", data)
    for weight, word in zip(weights, prf.words(seed, "sketch", count=len(weights)), strict=True):
        for bit in range(64):
            sums[bit] += weight if word >> bit & 1 else -weight
    return tuple(sums)
