"""polcommit inspect: what is in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from polcommit import records
from polcommit.cli import common
from polcommit.cli.present import plain
from polcommit.encoding import MAX_SIZE, Record, decode, unpack
from polcommit.errors import EncodingError, StorageError

#: Kinds of records that stand in files of their own.
_KINDS: tuple[type[Record], ...] = (
    records.Manifest, records.GenesisRecord, records.StepRecord, records.Statement, records.RevealedHead,
    records.Envelope, records.Request, records.Challenge, records.Disclosure, records.Openings,
    records.SealedOpening, records.Refusal, records.Verdict, records.Receipt, records.Evidence, records.StateIndex,
    records.Fingerprint,
)  # fmt: skip


@click.command()
@click.argument("file", type=common.FILE)
@common.json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show what is in FILE: a bundle, a request, an opening, a receipt, a manifest, a kept state. Checks nothing."""
    from polcommit.storage import files

    with files.reported("reading", file), file.open("rb") as stream:
        data = stream.read(MAX_SIZE + 64)       # bulk data behind the record is not shown
    kind, fields = _parsed(data, file)
    result = {"kind": kind, "file": str(file), **fields}
    common.show(result, True) if as_json else click.echo(json.dumps(result, indent=2))


def _parsed(data: bytes, file: Path) -> tuple[str, dict[str, Any]]:
    from polcommit.session.bundle import MAGIC

    if data.startswith(MAGIC):
        start = len(MAGIC) + 8
        length = int.from_bytes(data[len(MAGIC) : start], "big")
        return _record(data[start : start + length], file)
    framed = int.from_bytes(data[:4], "big")
    if 0 < framed <= len(data) - 4:
        try:
            return _record(data[4 : 4 + framed], file)
        except StorageError:
            pass        # no framed message after all: perhaps a bare record
    return _record(data, file)


def _record(data: bytes, file: Path) -> tuple[str, dict[str, Any]]:
    try:
        values = unpack(data)
    except EncodingError as error:
        raise StorageError(f"{file} is not a file of polcommit's, or is damaged: {error}") from error
    tag = values[0] if isinstance(values, tuple) and values else None
    for kind in _KINDS:
        if tag == f"polcommit/{kind.TAG}":
            try:
                return str(kind.TAG), plain(decode(data, kind))
            except EncodingError as error:
                raise StorageError(f"{file} holds a damaged {kind.TAG} record: {error}") from error
    raise StorageError(f"{file} is not a file that can be shown", hint="give a bundle, request, opening or receipt")
