"""CIFAR-10 and CIFAR-100 in their published binary version, and the augmentation that training on them uses.

A file is records without anything between them: one label byte (CIFAR-10), or a coarse and a fine one (CIFAR-100),
then 3,072 bytes of a 32x32 image, its red, green and blue plane in turn, each row by row
(https://www.cs.toronto.edu/~kriz/cifar.html; Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
2009). The published files hold 10,000 or 50,000 records; any whole number is read.

That the images are the published ones is not checked here: what was trained on is what registration commits to.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from polcommit.errors import MissingExtra, UsageError

SIDE = 32                           # pixels
SHAPE = (3, SIDE, SIDE)             # of an image: planes, rows, columns
PIXELS = 3 * SIDE * SIDE            # bytes of an image

Image = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A data set's files. `labels` names the label bytes of a record, with the number of classes of each."""

    name: str
    folder: str                             # as its archive unpacks
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: tuple[tuple[str, int], ...]     # the last is what is learnt

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return len(self.labels) + PIXELS

    @property
    def classes(self) -> int:
        """Number of classes to tell apart."""
        return self.labels[-1][1]


CIFAR10 = Format(
    name="CIFAR-10",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    labels=(("label", 10),),
)
CIFAR100 = Format(
    name="CIFAR-100",
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    labels=(("coarse label", 20), ("fine label", 100)),
)


class Images:
    """Samples (image, label) of some files of a folder, in the order of the files.

    An image is (3, 32, 32) uint8; the label of CIFAR-100 is the fine one. The files are read at once, so that one
    that is cut short later cannot end the process, as a mapped one would.

    Raises:
        UsageError: a file is missing, empty or cut off, or a label is none of the format's.
    """

    def __init__(self, folder: Path, form: Format, files: Sequence[str]) -> None:
        self._skip = len(form.labels)
        self._parts = [_records(folder / name, form) for name in files]
        self._ends = list(accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[Image, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index)
        start = self._ends[part - 1] if part else 0
        record = self._parts[part][index - start]
        return record[self._skip :].reshape(SHAPE).copy(), int(record[self._skip - 1])


def _records(path: Path, form: Format) -> Image:
    """(N, bytes of a record) uint8."""
    hint = f"give the folder of {form.name}'s binary version, {form.folder}; other versions are not read"
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UsageError(f"cannot read {form.name}'s {path} ({error.strerror})", hint=hint) from error
    if not data.size or data.size % form.record:
        raise UsageError(
            f"{path} has {data.size} bytes, not one or more {form.name} records of {form.record}", hint=hint
        )
    records = data.reshape(-1, form.record)
    for column, (label, classes) in enumerate(form.labels):
        wrong = np.flatnonzero(records[:, column] >= classes)
        if wrong.size:
            raise UsageError(
                f"{path}: record {wrong[0]} has {label} {records[wrong[0], column]}, "
                f"but those of {form.name} are 0 to {classes - 1}",
                hint=hint,
            )
    return records


# --- augmentation ---------------------------------------------------------------------------------------------


def cropped(image: Image, shift: int) -> Image:
    """(3, H, W) moved by up to `shift` pixels in each direction, black where nothing was; from Python's generator.

    The crop from an image with a border of 4 black pixels, of He et al., CVPR 2016, §4.2.
    """
    if not shift:
        return image
    planes, rows, columns = image.shape
    padded = np.zeros((planes, rows + 2 * shift, columns + 2 * shift), dtype=image.dtype)
    padded[:, shift : shift + rows, shift : shift + columns] = image
    top, left = (random.randint(0, 2 * shift) for _ in range(2))  # noqa: S311  # seeded, no secret
    return padded[:, top : top + rows, left : left + columns]


def flipped(image: Image) -> Image:
    """(3, H, W) mirrored left to right, half the time."""
    return image[:, :, ::-1] if random.random() < 0.5 else image  # noqa: S311  # seeded, no secret


def tilted(image: Image, most: float) -> Image:
    """(3, H, W) turned about its centre by a random angle; `most` is the tangent of half the largest.

    The tangent is uniform, and so is the angle, nearly: from 0 to 15 degrees its density rises by 2 %. Sine and cosine
    are rational in it, so that no C library decides which pixel is the nearest.
    """
    if not most:
        return image
    return turned(image, random.uniform(-most, most))  # noqa: S311  # seeded, no secret


def turned(image: Image, tangent: float) -> Image:
    """(3, H, W) turned clockwise about its centre by 2 atan(`tangent`): nearest pixel, black from beyond the edge."""
    square = tangent * tangent
    cosine, sine = (1.0 - square) / (1.0 + square), 2.0 * tangent / (1.0 + square)
    rows, columns = image.shape[1:]
    down = (np.arange(rows) - (rows - 1) / 2)[:, None]
    right = (np.arange(columns) - (columns - 1) / 2)[None, :]
    row = np.floor(cosine * down - sine * right + rows / 2).astype(np.int64)
    column = np.floor(sine * down + cosine * right + columns / 2).astype(np.int64)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return np.where(inside, image[:, row.clip(0, rows - 1), column.clip(0, columns - 1)], np.uint8(0))


# --- writing --------------------------------------------------------------------------------------------------


def write_cifar10(folder: Path, images: Image, labels: Sequence[int], *, held_out: int | None = None) -> None:
    """Write images of one's own in CIFAR-10's format: the last `held_out` (a sixth if None) as the test file.

    The rest goes into the five training files, in order. `images` is (N, 32, 32, 3) or (N, 3, 32, 32) uint8, `labels`
    N numbers from 0 to 9. Files that are there already are overwritten.

    Raises:
        UsageError: other shapes, types or labels, too few images for six files, or a folder that cannot be written.
    """
    records = _as_records(images, labels)
    test = len(records) // 6 if held_out is None else held_out
    train = len(records) - test
    if test < 1 or train < len(CIFAR10.train):
        raise UsageError(f"{len(records)} images, {test} held out: each of CIFAR-10's six files needs at least one")
    cuts = [train * number // len(CIFAR10.train) for number in range(1, len(CIFAR10.train) + 1)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in zip((*CIFAR10.train, *CIFAR10.test), np.split(records, cuts), strict=True):
            (folder / name).write_bytes(part.tobytes())
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror})", hint="give another folder") from error


def _as_records(images: Image, labels: Sequence[int]) -> Image:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] not in (SHAPE, (SIDE, SIDE, 3)):
        raise UsageError(
            f"images of shape {images.shape} and type {images.dtype}",
            hint="(N, 32, 32, 3) or (N, 3, 32, 32), of type uint8",
        )
    planes = images if images.shape[1:] == SHAPE else images.transpose(0, 3, 1, 2)
    column = np.asarray(labels)
    if column.shape != (len(images),) or column.dtype.kind not in "iu" or ((column < 0) | (column > 9)).any():
        raise UsageError(f"the labels of {len(images)} images are as many whole numbers from 0 to 9")
    return np.concatenate([column.astype(np.uint8)[:, None], planes.reshape(len(images), PIXELS)], axis=1)


def digits_as_cifar10(folder: Path) -> None:
    """Write scikit-learn's handwritten digits as 32x32 images in CIFAR-10's format: 1,500 to train on, 297 to test.

    Each of the 8x8 pixels becomes 4x4, its 17 grey levels 0 to 255, in all three planes. A stand-in where CIFAR-10
    is not at hand: what is measured on it says nothing about CIFAR-10.

    Raises:
        MissingExtra: scikit-learn is not installed.
        UsageError: a folder that cannot be written.
    """
    try:
        from sklearn.datasets import load_digits  # an optional dependency
    except ImportError as error:
        raise MissingExtra("recipes", "scikit-learn's digits") from error
    data = load_digits()
    grey = (data.images.astype(np.int64) * 255 // 16).astype(np.uint8)
    images = np.repeat(grey.repeat(4, axis=1).repeat(4, axis=2)[:, None], 3, axis=1)
    write_cifar10(folder, images, data.target, held_out=297)
