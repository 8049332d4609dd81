"""Blobs come in as a stream and are believed only once their digest matches."""

from __future__ import annotations

import io

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from polcommit.encoding import tag
from polcommit.errors import EncodingError, StorageError
from polcommit.opening import Blob
from polcommit.storage.blobs import BlobFolder

SAMPLE = tag("sample")


def due(content: bytes, prefix: bytes = b"") -> Blob:
    return Blob(blake3(prefix + content).digest(), len(content), prefix)


CONTENTS = [b"a tensor", b"", b"x" * 5000, b"a sample"]
DUE = [due(CONTENTS[0]), due(CONTENTS[1]), due(CONTENTS[2]), due(CONTENTS[3], SAMPLE)]


@pytest.fixture
def folder(tmp_path) -> BlobFolder:
    return BlobFolder(tmp_path / "blobs")


def files_in(folder: BlobFolder) -> set[str]:
    return {path.name for path in folder.folder.iterdir()}


@settings(deadline=None)     # it writes files
@given(contents=st.lists(st.binary(max_size=50), unique=True, max_size=8), size=st.integers(1, 60))
def test_any_chunks_make_the_same_blobs(tmp_path_factory, contents, size):
    folder = BlobFolder(tmp_path_factory.mktemp("blobs"))
    stream = b"".join(contents)
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert folder.receive([b"", *chunks, b""], [due(content) for content in contents]) == len(stream)
    assert [folder.get(due(content).content, len(content)) for content in contents] == contents
    assert b"".join(folder.stream(due(content).content for content in contents)) == stream


def test_from_a_file_with_prefixes(folder):
    folder.receive(io.BytesIO(b"".join(CONTENTS)), DUE)
    assert files_in(folder) == {blob.content.hex() for blob in DUE}
    assert folder.get(DUE[3].content, 8, prefix=SAMPLE) == b"a sample"
    with pytest.raises(StorageError, match="content does not match"):
        folder.get(DUE[3].content, 8)


def test_too_short(folder):
    stream = b"".join(CONTENTS)
    with pytest.raises(EncodingError, match="blob 3 is truncated: 7 bytes of 8"):
        folder.receive([stream[:-1]], DUE)
    assert files_in(folder) == {blob.content.hex() for blob in DUE[:3]}


def test_too_long(folder):
    with pytest.raises(EncodingError, match="more than the 5016 bytes expected follow"):
        folder.receive([b"".join(CONTENTS), b"\0"], DUE)


def test_every_flipped_byte_is_found_and_no_such_blob_stays(folder):
    contents = [b"one", b"three"]
    stream = b"".join(contents)
    for position in range(len(stream)):
        flipped = bytearray(stream)
        flipped[position] ^= 0x80
        with pytest.raises(EncodingError, match="has digest"):
            folder.receive([bytes(flipped)], [due(content) for content in contents])
    assert files_in(folder) == {due(b"one").content.hex()}


def test_order_matters(folder):
    with pytest.raises(EncodingError, match="blob 0 has digest"):
        folder.receive([b"three", b"one"], [due(b"oneth"), due(b"ree")])


def test_an_endless_stream_is_left_after_one_byte_too_many(folder):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield b"x" * 100

    with pytest.raises(EncodingError, match="follow"):
        folder.receive(endless(), [due(b"x" * 1000)])
    assert len(taken) == 11


@pytest.mark.parametrize("blob", [Blob(b"short", 1), Blob(bytes(32), -1)])
def test_an_impossible_expectation(folder, blob):
    with pytest.raises(EncodingError, match="blob 0"):
        folder.receive([b"x"], [blob])


def test_missing_and_damaged_later(folder):
    blob = due(b"content")
    with pytest.raises(StorageError, match=f"blob {blob.content.hex()} is missing"):
        folder.get(blob.content, 7)
    folder.receive([b"content"], [blob])
    for damaged in (b"CONTENT", b"conten", b"contents"):
        folder.path(blob.content).write_bytes(damaged)
        with pytest.raises(StorageError, match=str(folder.path(blob.content))):
            folder.get(blob.content, 7)
