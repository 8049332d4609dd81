"""CIFAR's published binary version, against files written byte by byte here; and the augmentation."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from polcommit.errors import MissingExtra, UsageError
from polcommit.recipes.cifar import (
    CIFAR10,
    CIFAR100,
    Format,
    Image,
    Images,
    cropped,
    digits_as_cifar10,
    flipped,
    tilted,
    turned,
    write_cifar10,
)

RED, GREEN, BLUE = 1, 2, 3


def record(*labels: int, corner: int = 0) -> bytes:
    """One record whose planes are 1, 2 and 3, but for the upper right pixel of the red one."""
    red = bytearray([RED]) * 1024
    red[31] = corner
    return bytes(labels) + bytes(red) + bytes([GREEN]) * 1024 + bytes([BLUE]) * 1024


def published(folder: Path, form: Format, records: int = 2) -> Path:
    """A folder with every file of a format, its records numbered in the corner, across the training files."""
    number = 0
    for name in (*form.train, *form.test):
        data = b""
        for _ in range(records):
            labels = [number % classes for _, classes in form.labels]
            data += record(*labels, corner=number)
            number += 1
        (folder / name).write_bytes(data)
    return folder


def test_cifar_10_is_five_files_with_one_label_byte(tmp_path: Path) -> None:
    images = Images(published(tmp_path, CIFAR10, records=3), CIFAR10, CIFAR10.train)
    assert len(images) == 15
    for index in range(15):
        image, label = images[index]
        assert image.shape == (3, 32, 32) and image.dtype == "uint8" and type(label) is int
        assert label == index % 10 and image[0, 0, 31] == index
        assert [int(plane[31, 0]) for plane in image] == [RED, GREEN, BLUE]
    assert Images(tmp_path, CIFAR10, CIFAR10.test)[0][1] == 15 % 10


def test_cifar_100_has_a_coarse_label_before_the_fine_one(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(record(19, 99, corner=7) + record(3, 0))
    images = Images(tmp_path, CIFAR100, CIFAR100.train)
    assert [images[index][1] for index in range(2)] == [99, 0]
    assert images[0][0][0, 0, 31] == 7 and images[1][0].sum() == 1024 * (RED + GREEN + BLUE) - RED


@pytest.mark.parametrize("index", [-1, 10])
def test_there_are_no_samples_beyond_the_ends(tmp_path: Path, index: int) -> None:
    images = Images(published(tmp_path, CIFAR10), CIFAR10, CIFAR10.train)
    with pytest.raises(IndexError):
        images[index]


def test_a_sample_that_is_changed_does_not_change_the_next_reading(tmp_path: Path) -> None:
    images = Images(published(tmp_path, CIFAR10), CIFAR10, CIFAR10.train)
    images[0][0][:] = 255
    assert images[0][0].max() == BLUE


def refused(folder: Path, form: Format = CIFAR10) -> UsageError:
    with pytest.raises(UsageError) as caught:
        Images(folder, form, form.train)
    assert caught.value.hint is not None and form.folder in caught.value.hint
    return caught.value


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (published(tmp_path, CIFAR10) / "data_batch_4.bin").unlink()
    assert f"cannot read CIFAR-10's {tmp_path / 'data_batch_4.bin'} (No such file" in refused(tmp_path).message
    assert "No such file" in refused(tmp_path / "nowhere").message


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "train.bin").mkdir()
    assert "train.bin (Is a directory)" in refused(tmp_path, CIFAR100).message


@pytest.mark.parametrize("length", [0, 1, 3072, 3073 - 1, 2 * 3073 + 1, 3074])
def test_a_file_that_is_no_whole_number_of_records(tmp_path: Path, length: int) -> None:
    (published(tmp_path, CIFAR10) / "data_batch_2.bin").write_bytes(bytes(length))
    message = refused(tmp_path).message
    assert f"data_batch_2.bin has {length} bytes" in message and "CIFAR-10 records of 3073" in message


def test_the_one_data_set_does_not_pass_for_the_other(tmp_path: Path) -> None:
    """50,000 records of CIFAR-100 are no whole number of CIFAR-10's; of 3,073 they would be."""
    for name in CIFAR10.train:
        (tmp_path / name).write_bytes(record(3, 4) * 2)
    assert "6148 bytes" in refused(tmp_path).message


@pytest.mark.parametrize(
    ("form", "labels", "message"),
    [
        (CIFAR10, (10,), "record 1 has label 10, but those of CIFAR-10 are 0 to 9"),
        (CIFAR10, (255,), "record 1 has label 255"),
        (CIFAR100, (20, 5), "record 1 has coarse label 20, but those of CIFAR-100 are 0 to 19"),
        (CIFAR100, (5, 100), "record 1 has fine label 100, but those of CIFAR-100 are 0 to 99"),
    ],
)
def test_a_label_out_of_range(tmp_path: Path, form: Format, labels: tuple[int, ...], message: str) -> None:
    good = [0] * len(labels)
    (published(tmp_path, form) / form.train[-1]).write_bytes(record(*good) + record(*labels) + record(*labels))
    found = refused(tmp_path, form).message
    assert found.startswith(str(tmp_path / form.train[-1])) and message in found


# --- augmentation ---------------------------------------------------------------------------------------------


@pytest.fixture
def image() -> Image:
    """(3, 32, 32), no two pixels of a plane next to each other alike, none black."""
    return np.random.RandomState(1).randint(1, 256, (3, 32, 32)).astype(np.uint8)


def test_a_crop_is_the_image_moved_over_black(image: Image) -> None:
    random.seed(5)
    moved = {_moved(image, down, right).tobytes() for down in range(-2, 3) for right in range(-2, 3)}
    assert len(moved) == 25
    assert {cropped(image, 2).tobytes() for _ in range(400)} == moved
    assert cropped(image, 0) is image


def _moved(image: Image, down: int, right: int) -> Image:
    """Pixel by pixel."""
    out = np.zeros_like(image)
    for row in range(32):
        for column in range(32):
            if 0 <= row - down < 32 and 0 <= column - right < 32:
                out[:, row, column] = image[:, row - down, column - right]
    return out


def test_a_flip_is_left_to_right_half_the_time(image: Image) -> None:
    random.seed(5)
    mirrored = 0
    for _ in range(200):
        found = flipped(image)
        assert np.array_equal(found, image) or np.array_equal(found[:, :, ::-1], image)
        mirrored += not np.array_equal(found, image)
    assert 70 < mirrored < 130


def test_a_turn_by_right_angles_is_exact(image: Image) -> None:
    assert np.array_equal(turned(image, 0.0), image)
    assert np.array_equal(turned(image, 1.0), np.rot90(image, -1, axes=(1, 2)))
    assert np.array_equal(turned(image, -1.0), np.rot90(image, axes=(1, 2)))


def test_a_turn_takes_the_nearest_pixel_and_leaves_black_corners(image: Image) -> None:
    tangent = 0.13165
    angle = 2 * np.arctan(tangent)
    assert abs(np.degrees(angle) - 15) < 0.01
    found = turned(image, tangent)
    assert not found[:, 0, 0].any() and not found[:, 31, 31].any()
    for row, column in [(16, 16), (4, 20), (25, 9), (15, 30)]:
        down, right = row - 15.5, column - 15.5
        there = np.cos(angle) * down - np.sin(angle) * right + 15.5
        across = np.sin(angle) * down + np.cos(angle) * right + 15.5
        assert found[0, row, column] == image[0, round(there), round(across)]


def test_a_tilt_turns_both_ways_and_no_further(image: Image) -> None:
    """The pixel right of the centre, 15.5 away, comes from up to 15.5 * sin(15 degrees) = 4.01 rows above or below."""
    random.seed(5)
    assert tilted(image, 0.0) is image
    rows = np.broadcast_to(np.arange(1, 33, dtype=np.uint8)[None, :, None], (3, 32, 32))
    seen = {int(tilted(rows, 0.13165)[0, 16, 31]) - 1 for _ in range(300)}
    assert seen == set(range(12, 21))


# --- writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True], ids=["planes first", "planes last"])
def test_what_is_written_is_read_again(tmp_path: Path, last: bool) -> None:
    images = np.random.RandomState(2).randint(0, 256, (13, 3, 32, 32)).astype(np.uint8)
    labels = [index % 10 for index in range(13)]
    given = np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if last else images
    write_cifar10(tmp_path / "new", given, labels, held_out=2)
    train = Images(tmp_path / "new", CIFAR10, CIFAR10.train)
    test = Images(tmp_path / "new", CIFAR10, CIFAR10.test)
    assert (len(train), len(test)) == (11, 2)
    samples = [train[index] for index in range(11)] + [test[index] for index in range(2)]
    assert [label for _, label in samples] == labels
    assert np.array_equal(np.stack([image for image, _ in samples]), images)


def test_a_sixth_is_held_out_as_in_the_published_files(tmp_path: Path) -> None:
    write_cifar10(tmp_path, np.zeros((12, 32, 32, 3), dtype=np.uint8), [0] * 12)
    sizes = [(tmp_path / name).stat().st_size // 3073 for name in (*CIFAR10.train, *CIFAR10.test)]
    assert sizes == [2, 2, 2, 2, 2, 2]


GOOD = np.zeros((12, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "held_out", "message"),
    [
        (GOOD.astype(np.float32), [0] * 12, None, "float32"),
        (GOOD[:, :28], [0] * 12, None, r"shape \(12, 28, 32, 3\)"),
        (GOOD[0], [0] * 12, None, "shape"),
        (GOOD, [0] * 11, None, "labels of 12 images"),
        (GOOD, [0] * 11 + [10], None, "from 0 to 9"),
        (GOOD, [0] * 11 + [-1], None, "from 0 to 9"),
        (GOOD, [0.0] * 12, None, "whole numbers"),
        (GOOD[:5], [0] * 5, None, "5 images, 0 held out"),
        (GOOD, [0] * 12, 8, "12 images, 8 held out"),
        (GOOD, [0] * 12, 0, "12 images, 0 held out"),
    ],
)
def test_what_does_not_fit_the_format_is_not_written(
    tmp_path: Path, images: Image, labels: list[int], held_out: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write_cifar10(tmp_path / "new", images, labels, held_out=held_out)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write to .*file"):
        write_cifar10(tmp_path / "file", GOOD, [0] * 12)


def test_digits_become_images_of_cifar_10(tmp_path: Path) -> None:
    digits_as_cifar10(tmp_path)
    train = Images(tmp_path, CIFAR10, CIFAR10.train)
    assert len(train) == 1500 and len(Images(tmp_path, CIFAR10, CIFAR10.test)) == 297
    image, label = train[0]
    assert label == 0 and np.array_equal(image[0], image[1]) and np.array_equal(image[0], image[2])
    small = image[0, ::4, ::4]
    assert np.array_equal(np.kron(small, np.ones((4, 4), dtype=np.uint8)), image[0])
    # the first row of the first digit, as scikit-learn has it: 0 0 5 13 9 1 0 0 of 16
    assert small[0].tolist() == [0, 0, 79, 207, 143, 15, 0, 0]


def test_without_scikit_learn_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match="needs the 'recipes' extra"):
        digits_as_cifar10(tmp_path)
