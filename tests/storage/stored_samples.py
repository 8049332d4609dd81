"""A run with nothing real in it: valid records for whatever stores records."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from blake3 import blake3

from polcommit import merkle
from polcommit.encoding import Record
from polcommit.records import (
    Fingerprint,
    Manifest,
    RevealedHead,
    ScalarEntry,
    StateIndex,
    Statement,
    TensorEntry,
    TreeHead,
)
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.settings import Settings

LEAVES = [merkle.leaf_hash(bytes([n])) for n in range(7)]
CONTENTS = [(blake3(bytes([n])).digest(), n) for n in range(7)]
SETTINGS = Settings(recipe="digits", configuration=(("lr", "0.1"), ("epochs", "3")), data="/data/digits", key="alice")
SECRET = bytes(range(32))


def filled(kind: Any, **given: Any) -> Any:
    """A value of a record's field type, or a record: zeros, empty and None wherever nothing is `given`.

    Storage does not care what a record says, and these tests need not know all of its fields.
    """
    if get_origin(kind) in (Union, types.UnionType):
        return None
    if get_origin(kind) is Annotated:
        return bytes(get_args(kind)[1].size)
    if get_origin(kind) is tuple:
        return () if get_args(kind)[-1] is Ellipsis else tuple(filled(item) for item in get_args(kind))
    if issubclass(kind, Record):
        hints = get_type_hints(kind, include_extras=True)
        fields = (field.name for field in dataclasses.fields(kind))
        return kind(**{name: given[name] if name in given else filled(hints[name]) for name in fields})
    return kind()


def entry(name: str, data: bytes, dtype: str = "uint8", shape: tuple[int, ...] | None = None) -> TensorEntry:
    shape = (len(data),) if shape is None else shape
    return TensorEntry(name=name, kind="parameter", dtype=dtype, shape=shape, content=blake3(data).digest())


def state(**tensors: bytes) -> tuple[StateIndex, Callable[[TensorEntry], bytes]]:
    entries = tuple(entry(name, data) for name, data in sorted(tensors.items()))
    index = StateIndex(tensors=entries, scalars=ScalarEntry(values=b"\x90", aliases=()))
    return index, lambda wanted: tensors[wanted.name]


def manifest() -> Manifest:
    return Manifest(
        recipe="digits",
        recipe_source=b"\1" * 32,
        configuration=b"\2" * 32,
        preprocessing=None,
        dataset=TreeHead(size=len(LEAVES), root=merkle.root(LEAVES)),
        schedule=TreeHead(size=10, root=b"\3" * 32),
        steps=10,
        batch=2,
        accumulation=1,
        digest_every=1,
        keep=5,
        generator=1,
        order=1,
        environment=Fingerprint(items=(("torch", "2"),)),
        prover=b"\4" * 32,
        account=b"\5" * 20,
        verifiers=(),
        clear_openings=False,
        parent=None,
        seed=None,
        confirmations=1,
    )


def head(sequence: int, root: bytes = b"\6" * 32) -> RevealedHead:
    statement = Statement(
        run=b"\7" * 32,
        sequence=sequence,
        size=1 + sequence,
        root=root,
        genesis=b"\10" * 32,
        previous=None if sequence == 1 else b"\11" * 32,
        final=False,
        state=b"\12" * 32,
        environments=((1, b"\13" * 32),),
        recipients=(),
    )
    return RevealedHead(statement=statement, signature=b"\14" * 64, blinding=b"\15" * 32)


def make(path: Path) -> RunFolder:
    return RunFolder.create(
        path, manifest=manifest(), secret=SECRET, settings=SETTINGS, leaves=iter(LEAVES), contents=iter(CONTENTS)
    )
