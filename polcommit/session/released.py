"""A released model's file, for V13: names, dtypes, shapes and content digests. No code in it is run."""

from __future__ import annotations

import json
from pathlib import Path

from blake3 import blake3

from polcommit.comparisons import ReleasedModel
from polcommit.errors import UsageError
from polcommit.opening import DTYPES
from polcommit.storage import files

MAX_HEADER = 100 << 20


def read_model(path: Path) -> ReleasedModel:
    """Read a safetensors file's tensors, hashing each.

    Raises:
        UsageError: not a safetensors file.
        StorageError: it cannot be read.
    """
    names = {theirs: ours for ours, (theirs, _) in DTYPES.items()}
    with files.reported("reading", path), path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 0 < length <= min(MAX_HEADER, size):
                raise ValueError("no header")
            header = json.loads(file.read(length))
            tensors = {}
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                start, stop = entry["data_offsets"]
                dtype, shape = names[entry["dtype"]], tuple(entry["shape"])
                file.seek(8 + length + start)
                data = file.read(stop - start)
                if not 0 <= start <= stop <= size or len(data) != stop - start:
                    raise ValueError(f"tensor {name} is truncated")
                tensors[str(name)] = (dtype, shape, blake3(data).digest())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            hint = "save the model with safetensors"
            raise UsageError(f"{path} is not a safetensors file: {error}", hint=hint) from error
        file.seek(0)
        whole = blake3()
        while chunk := file.read(1 << 20):
            whole.update(chunk)
    return ReleasedModel(digest=whole.digest(), tensors=tensors)
