"""The run folder: what is written is read again, what is damaged is named, nothing is overwritten."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_samples import CONTENTS, LEAVES, SECRET, SETTINGS, filled, head, make, manifest, state

from polcommit.encoding import encode
from polcommit.errors import EncodingError, PolcommitError, StorageError, UsageError
from polcommit.events import Position, Registered
from polcommit.records import Fingerprint, Receipt, Request, Verdict
from polcommit.storage.runfolder import RunFolder, check_free
from polcommit.storage.settings import Settings
from polcommit.storage.types import Disclosed, Epoch, Registration

POSITION = Position(block=7, log_index=2, block_hash=b"\1" * 32, transaction=b"\2" * 32)
REGISTRATION = Registration(
    chain_id=31337,
    contract=b"\10" * 20,
    registered=Registered(run=b"\3" * 32, account=b"\4" * 20, nonce=5, manifest=b"\5" * 32, position=POSITION),
    beacon_block=11,
    beacon_block_hash=b"\6" * 32,
    beacon=b"\7" * 32,
)


def receipt(challenge_id: int | None, note: str = "") -> Receipt:
    request = filled(Request, strategy="random", count=1)
    reported = {"verdict": "inconclusive", "challenge_id": challenge_id, "request": request, "software": note}
    return filled(Receipt, verdict=filled(Verdict, **reported))


# --- making and opening -----------------------------------------------------------------------------------------


def test_what_was_made_is_there_again(run):
    again = RunFolder.open(run.path)
    assert again.manifest == manifest()
    assert again.secret == SECRET
    assert again.settings == SETTINGS
    assert again.dataset_leaves() == LEAVES
    assert again.dataset_contents() == CONTENTS
    assert (again.registration, again.registration_pending) == (None, None)
    assert (again.receipts(), again.disclosed(), again.environments()) == ((), {}, ())
    with again.journal() as journal:
        assert len(journal) == 0


def test_only_the_owner_reads_the_secret(run):
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.path.iterdir() if path.is_file()}
    assert modes.pop("secret") == 0o600
    assert set(modes.values()) == {0o644}


def test_a_run_is_never_overwritten(run):
    before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    with pytest.raises(StorageError, match="already holds a run"):
        make(run.path)
    with pytest.raises(StorageError, match="already holds a run"):
        check_free(run.path)
    assert before == {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="holds other files"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_journal_without_its_manifest_is_not_begun_anew(run):
    """Somebody removed the manifest: making a run again here would lose the secret behind every salt."""
    with run.journal() as journal:
        journal.append(b"genesis")
    (run.path / "manifest").unlink()
    with pytest.raises(StorageError, match="holds other files"):
        make(run.path)
    assert (run.path / "secret").read_text() == SECRET.hex() + "\n"


@pytest.mark.parametrize("name", ["dataset.leaves", "dataset.contents", "secret", "settings.json", "manifest"])
def test_an_interrupted_create_is_begun_anew(tmp_path, monkeypatch, name):
    from polcommit.storage import files

    def interrupted(path: Path, *arguments: object, **options: object) -> None:
        if path.name == name:
            raise StorageError("disk full")
        real(path, *arguments, **options)

    real = files.write_atomic
    with monkeypatch.context() as patched:
        patched.setattr(files, "write_atomic", interrupted)
        with pytest.raises(StorageError, match="disk full"):
            make(tmp_path / "run")
    with pytest.raises(StorageError, match="holds no registered run") as caught:
        RunFolder.open(tmp_path / "run")
    assert "polcommit register" in caught.value.hint
    make(tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").secret == SECRET


def test_missing_and_foreign_folders(tmp_path):
    with pytest.raises(StorageError, match="no run folder at"):
        RunFolder.open(tmp_path / "absent")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(StorageError, match="photos is not a run folder"):
        RunFolder.open(tmp_path / "photos")
    with pytest.raises(StorageError, match="no run folder at"):
        RunFolder.open(tmp_path / "photos" / "cat.png")
    with pytest.raises(StorageError, match="is not a folder"):
        make(tmp_path / "photos" / "cat.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leaves": LEAVES[:-1]}, "6 leaf hashes for a data set of 7"),
        ({"leaves": [*LEAVES, LEAVES[0]]}, "8 leaf hashes"),
        ({"leaves": [*LEAVES[:6], b"short"]}, "number 6 has 5 bytes instead of 32"),
        ({"contents": CONTENTS[1:]}, "6 contents"),
        ({"contents": [(b"short", 1)] * 7}, "not 5"),
        ({"secret": b"short"}, "a run secret has 32 bytes, not 5"),
    ],
)
def test_a_run_is_not_made_from_what_does_not_fit(tmp_path, change, message):
    given = {"manifest": manifest(), "secret": SECRET, "settings": SETTINGS, "leaves": LEAVES, "contents": CONTENTS}
    with pytest.raises(UsageError, match=message):
        RunFolder.create(tmp_path / "run", **{**given, **change})
    make(tmp_path / "run")


def test_one_process_records(run):
    with run.lock(), pytest.raises(StorageError, match=f"is recording in {run.path}"), RunFolder.open(run.path).lock():
        pytest.fail("two at once")


def test_who_holds_the_lock_removes_what_killed_writers_left(run):
    (run.path / ".tmp-a").write_bytes(b"half a file")
    (run.path / "anchors" / ".tmp-b").write_bytes(b"half a head")
    with run.lock():
        assert not list(run.path.rglob(".tmp-*"))


# --- damage -----------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[RunFolder], object]] = {
    "manifest": lambda run: RunFolder.open(run.path),
    "secret": lambda run: run.secret,
    "settings.json": lambda run: run.settings,
    "dataset.leaves": lambda run: run.dataset_leaves(),
    "dataset.contents": lambda run: run.dataset_contents(),
    "registration": lambda run: run.registration,
    "journal": lambda run: run.journal(),
    "states/0.state": lambda run: run.states.get(0),
    "anchors/1.head": lambda run: run.anchors.head(1),
    "anchors/1.anchored": lambda run: run.anchors.anchored(1),
    "receipts/1": lambda run: run.receipts(),
    "disclosed/1": lambda run: run.disclosed(),
    "environments/0": lambda run: run.environments(),
}


@pytest.fixture
def full(run) -> RunFolder:
    """A run with one of everything."""
    run.write_registration_pending(b"signed transaction")
    run.write_registration(REGISTRATION)
    with run.journal() as journal:
        journal.append(b"genesis")
    run.states.put(0, *state(a=b"one"))
    run.anchors.write_head(head(1))
    run.anchors.write_pending(1, b"signed transaction")
    run.anchors.write_anchored(1, POSITION)
    run.write_receipt(1, receipt(1))
    run.write_disclosed(1, Disclosed(verifier=b"\1" * 32, steps=(3, 9)))
    run.add_environment(1, Fingerprint(items=(("torch", "2"),)))
    return RunFolder.open(run.path)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", ["truncated", "longer", "foreign", "folder"])
def test_damage_is_one_line_that_names_the_file(full, name, damage):
    path = full.path / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"truncated": whole[:-2], "longer": whole + b"\0", "foreign": b"\x89PNG\r\n\x1a\n"}[damage])
    if (name, damage) in {("journal", "truncated"), ("journal", "longer")}:
        with full.journal() as journal:     # an incomplete last frame, which is cut off
            assert journal.torn
        return
    with pytest.raises(StorageError) as caught:
        READERS[name](RunFolder.open(full.path) if name != "manifest" else full)
    assert str(full.path / name.split("/")[0]) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", sorted(READERS))
def test_no_flip_is_a_traceback(full, name):
    """A flip is either found here, or left to who compares digests: never another exception."""
    path = full.path / name
    whole = path.read_bytes()
    for position in range(len(whole)):
        for flip in (0x01, 0x80):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
            try:
                found = READERS[name](RunFolder(full.path, manifest()))
            except StorageError:
                continue
            assert name != "journal", "frames are checked"
            del found


# --- what is stored ---------------------------------------------------------------------------------------------


def test_registration(full):
    assert full.registration == REGISTRATION
    assert full.registration_pending == b"signed transaction"
    full.write_registration(REGISTRATION)
    with pytest.raises(StorageError, match="holds something else"):
        full.write_registration(dataclasses.replace(REGISTRATION, beacon=b"\0" * 32))
    with pytest.raises(StorageError, match="holds something else"):
        full.write_registration_pending(b"another transaction")
    full.write_registration_pending(b"the same with a higher fee", replace=True)
    assert full.registration == REGISTRATION


def test_a_negative_block_is_no_registration(run):
    with pytest.raises(EncodingError, match="is negative"):
        run.write_registration(dataclasses.replace(REGISTRATION, beacon_block=-1))


def test_receipts(full):
    full.write_receipt(1, receipt(1))
    full.write_receipt(12, receipt(12))
    full.write_receipt(2, receipt(None))
    assert full.receipts() == (receipt(1), receipt(None), receipt(12))
    with pytest.raises(StorageError, match="holds something else"):
        full.write_receipt(1, receipt(1, "other software"))
    with pytest.raises(UsageError, match="a receipt of challenge 1 is not one of 3"):
        full.write_receipt(3, receipt(1))


def test_what_was_disclosed_is_never_rewritten(full):
    """Budgets are charged with it: a shorter list would let the data set be pumped out."""
    opened = Disclosed(verifier=b"\1" * 32, steps=(3, 9))
    full.write_disclosed(1, opened)
    assert full.disclosed() == {1: opened}
    with pytest.raises(StorageError, match="holds something else"):
        full.write_disclosed(1, dataclasses.replace(opened, steps=(3,)))
    with pytest.raises(EncodingError, match="do not rise"):
        dataclasses.replace(opened, steps=(9, 3))


def test_environments(full):
    first, second = Fingerprint(items=(("torch", "2"),)), Fingerprint(items=(("torch", "3"),))
    assert full.add_environment(51, second) == 1
    assert full.environments() == (Epoch(first=1, fingerprint=first), Epoch(first=51, fingerprint=second))
    with pytest.raises(UsageError, match="environment epoch 2 cannot begin at step 51"):
        full.add_environment(51, first)
    assert full.drop_environments(51) == 0
    assert full.drop_environments(50) == 1
    assert full.add_environment(40, second) == 1
    (full.path / "environments" / "0").unlink()
    with pytest.raises(StorageError, match=r"holds epochs \[1\]"):
        full.environments()


def test_the_first_epoch_begins_at_step_1(run):
    with pytest.raises(UsageError, match="environment epoch 0 cannot begin at step 2"):
        run.add_environment(2, Fingerprint(items=()))


def test_self_checks(run):
    assert (run.checks.pending(), run.checks.done()) == ((), ())
    assert [run.checks.add(step) for step in (10, 2, 10)] == [True, True, False]
    run.checks.finish(2)
    run.checks.finish(2)
    assert run.checks.add(2) is False
    assert (run.checks.pending(), run.checks.done()) == ((10,), (2,))
    run.checks.add(1)
    run.checks.drop(1)
    assert (run.checks.pending(), run.checks.done()) == ((1,), ())


# --- anchors ----------------------------------------------------------------------------------------------------


def test_heads_follow_each_other(run):
    anchors = run.anchors
    with pytest.raises(UsageError, match="head 2 cannot follow head 0"):
        anchors.write_head(head(2))
    anchors.write_head(head(1))
    anchors.write_head(head(1))
    anchors.write_head(head(2))
    assert anchors.heads() == (head(1), head(2))
    with pytest.raises(StorageError, match="holds something else"):
        anchors.write_head(head(1, root=bytes(32)))
    assert anchors.heads() == (head(1), head(2))


def test_no_second_transaction_for_one_head(run):
    anchors = run.anchors
    with pytest.raises(UsageError, match="there is no head 1"):
        anchors.write_pending(1, b"transaction")
    anchors.write_head(head(1))
    assert (anchors.pending(1), anchors.anchored(1)) == (None, None)
    anchors.write_pending(1, b"transaction")
    with pytest.raises(StorageError, match="holds something else"):
        anchors.write_pending(1, b"a second one")
    anchors.write_pending(1, b"a higher fee", replace=True)
    anchors.write_anchored(1, POSITION)
    with pytest.raises(StorageError, match="head 1 is anchored already"):
        anchors.write_pending(1, b"a third", replace=True)
    assert (anchors.pending(1), anchors.anchored(1)) == (b"a higher fee", POSITION)
    with pytest.raises(StorageError, match="holds something else"):
        anchors.write_anchored(1, dataclasses.replace(POSITION, block=8))


def test_only_an_unsent_head_is_discarded(run):
    anchors = run.anchors
    for sequence in (1, 2):
        anchors.write_head(head(sequence))
    anchors.write_pending(1, b"transaction")
    with pytest.raises(UsageError, match="head 1 is not the last one"):
        anchors.discard(1)
    anchors.discard(2)
    with pytest.raises(UsageError, match="head 1 was sent, or may have been"):
        anchors.discard(1)
    assert anchors.sequences() == (1,)


def test_a_missing_or_renamed_head_is_noticed(full):
    full.anchors.write_head(head(2))
    path = full.path / "anchors"
    (path / "1.head").rename(path / "1.gone")
    with pytest.raises(StorageError, match=r"has heads \[2\], and anchors without a head \[1\]"):
        full.anchors.sequences()
    (path / "2.head").rename(path / "1.head")
    with pytest.raises(StorageError, match="holds head 2"):
        full.anchors.heads()


# --- settings ---------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=20)


@given(
    recipe=TEXT,
    configuration=st.dictionaries(TEXT, TEXT, max_size=5),
    rest=st.fixed_dictionaries({name: st.none() | TEXT for name in ("data", "rpc", "contract", "key")}),
)
def test_settings_come_back(recipe, configuration, rest):
    settings = Settings(recipe=recipe, configuration=tuple(configuration.items()), **rest)
    assert Settings.parse(settings.encode()) == settings


@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_input_breaks_the_parser(data):
    with pytest.raises(EncodingError):
        Settings.parse(data)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda fields: fields.update(extra=1), "unknown field 'extra'"),
        (lambda fields: fields.pop("key"), "missing field 'key'"),
        (lambda fields: fields.update(recipe=None), "recipe is None"),
        (lambda fields: fields.update(rpc=8545), "rpc is 8545"),
        (lambda fields: fields.update(configuration={"lr": "0.1"}), "not a list of pairs"),
        (lambda fields: fields.update(configuration=[["lr", 0.1]]), "not a pair of texts"),
        (lambda fields: fields.update(configuration=[["lr", "1"], ["lr", "2"]]), "names a hyperparameter twice"),
        (lambda fields: fields.update(configuration=["lr"]), "not a list of pairs"),
    ],
)
def test_edited_settings(edit, message):
    fields = json.loads(SETTINGS.encode())
    edit(fields)
    with pytest.raises(EncodingError, match=message):
        Settings.parse(json.dumps(fields).encode())


@pytest.mark.parametrize("text", ["[]", "{", "\xff", "[" * 100_000, '{"key": 1, "key": 2}'])
def test_what_is_no_settings_file(text):
    with pytest.raises(EncodingError):
        Settings.parse(text.encode("latin-1"))


def test_settings_are_replaced(run):
    run.write_settings(dataclasses.replace(SETTINGS, data="/elsewhere"))
    assert run.settings.data == "/elsewhere"
    assert RunFolder.open(run.path).settings.data == "/elsewhere"


def test_records_of_other_kinds_are_refused(full):
    """A valid record in the place of another: the tag tells them apart."""
    (full.path / "receipts" / "2").write_bytes(encode(head(1)))
    with pytest.raises(StorageError, match="not a receipt record"):
        full.receipts()


def test_errors_are_of_one_tree():
    assert issubclass(StorageError, PolcommitError)
