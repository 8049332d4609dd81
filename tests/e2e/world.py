"""A chain, some people with homes of their own, and what they do: the stage on which the end-to-end tests play.

Nothing here stands in for anything: anvil mines, processes run, torch trains. Where a test is not about processes,
what a command would do is called in this one, which saves loading torch again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from polcommit.encoding import Record, decode, digest, encode
from polcommit.errors import GradientsWanted
from polcommit.keys import Card, Role, create, load
from polcommit.ledger.accounts import create_keystore, open_keystore
from polcommit.ledger.devnet import Devnet
from polcommit.records import Challenge, Receipt
from polcommit.replaying import RegenerateJob, RegenerateReport, ReplayJob, ReplayReport
from polcommit.session import answer as answering
from polcommit.session import challenge as challenging
from polcommit.session import respond as responding
from polcommit.session import worker
from polcommit.session.anchor import AnchoredHead, anchor
from polcommit.session.answer import Options, verify_answer
from polcommit.session.challenge import Ask, Verifier
from polcommit.session.connection import Connection, connect, load_policy
from polcommit.session.pending import ChallengeFolder, Challenges
from polcommit.session.receipts import take_receipt
from polcommit.session.record import record
from polcommit.session.selfcheck import SelfCheck
from polcommit.storage.runfolder import RunFolder

HERE = Path(__file__).parent
PYTHON = sys.executable
CLI = (PYTHON, "-m", "polcommit.cli.main")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.stdout)
        assert isinstance(found, dict)
        return found

    def require(self, status: int) -> Finished:
        """Itself, if it ended with this status and without a traceback."""
        assert self.status == status, f"status {self.status}\n{self.stdout[-6000:]}\n{self.stderr[-3000:]}"
        assert "Traceback" not in self.stderr and "internal error" not in self.stderr, self.stderr
        return self


@dataclass(frozen=True)
class Registered:
    """A run that was registered: where its prover keeps it, and a copy of the folder as it was then."""

    name: str
    prover: str
    path: Path
    pristine: Path
    id: bytes

    @property
    def folder(self) -> RunFolder:
        return RunFolder.open(self.path)


class Interrupted(Exception):
    """What a recording process dies of in these tests, where it is not SIGKILL."""


@dataclass
class World:
    """One devnet, and everybody's homes on it; each home holds its own keys and a copy of the policy, nothing more."""

    root: Path
    rpc: str = ""
    chain: Devnet | None = None
    runs: dict[str, Registered] = field(default_factory=dict)

    # --- people ---------------------------------------------------------------------------------------------------

    def home(self, name: str) -> Path:
        return self.root / "homes" / name

    def person(self, name: str, role: Role) -> Card:
        """Keys in a home of their own, the policy beside them, and some ether."""
        assert self.chain is not None
        card = create(self.home(name), name, role, None, partial(create_keystore, light=True))
        shutil.copy(self.chain.policy, self.home(name) / "policy.toml")
        self.chain.fund(card.account)
        return card

    def card(self, name: str) -> Card:
        return load(self.home(name), name).card

    def reader(self, name: str, *, trusted: Sequence[str] = (), rpc: str | None = None, demand: str = "") -> str:
        """A third party: a policy, and no keys."""
        assert self.chain is not None
        text = self.chain.policy.read_text()
        if rpc is not None:
            text = text.replace(self.rpc, rpc)
        keys = ", ".join(f'"{self.card(other).signing.hex()}"' for other in trusted)
        text += f"\n[verifiers]\ntrusted = [{keys}]\n{demand}"
        self.home(name).mkdir(parents=True, exist_ok=True)
        (self.home(name) / "policy.toml").write_text(text)
        return name

    def signing(self, name: str) -> Ed25519PrivateKey:
        return load(self.home(name), name).signing(None)

    def account(self, name: str) -> bytes:
        return load(self.home(name), name).account(None, open_keystore)

    def connection(self, name: str) -> Connection:
        """As this person's commands would connect."""
        with at_home(self.home(name)):
            return connect(load_policy(self.home(name) / "policy.toml"))

    def verifier(self, name: str) -> Verifier:
        keys = load(self.home(name), name)
        return Verifier(self.connection(name), keys.signing(None), keys.recipient(None), self.account(name))

    # --- commands, each a process ---------------------------------------------------------------------------------

    def environment(self, name: str, **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("POLCOMMIT_")}
        return {**kept, "POLCOMMIT_HOME": str(self.home(name)), "PYTHONPATH": str(HERE), **more}

    def start(self, name: str, *arguments: object, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*CLI, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(name, **more),
            text=True,
            cwd=self.home(name),
        )

    def cli(self, name: str, *arguments: object, **more: str) -> Finished:
        """Run a command to its end."""
        return ended(self.start(name, *arguments, **more))

    def respondent(self, run: Registered) -> str:
        """The command that answers for a run: with its prover's home, from anywhere."""
        home = self.home(run.prover)
        return f"env POLCOMMIT_HOME={home} PYTHONPATH={HERE} {' '.join(CLI)} respond --stdio {run.path}"

    # --- the same in this process ---------------------------------------------------------------------------------

    def anchor(self, run: Registered) -> AnchoredHead:
        return anchor(run.folder, self.connection(run.prover), self.signing(run.prover), self.account(run.prover))

    def announce(
        self, verifier: Verifier, name: str, run: bytes, ask: Ask, sequence: int | None = None
    ) -> tuple[ChallengeFolder, Challenge]:
        """Send a challenge; the draw is fixed some blocks later, and answering waits for that."""
        found = challenging.find_anchor(verifier, run, sequence)
        head = challenging.open_head(verifier, found)
        folder = Challenges(self.home(name)).new(run)
        challenging.begin(verifier, folder, found, head, ask)
        return folder, challenging.announce(verifier, folder)

    def opening(self, run: Registered, challenge: Challenge, out: Path, folder: Path | None = None) -> Path:
        """The prover's answer, in a file."""
        with tempfile.TemporaryDirectory() as work, out.open("wb") as file:
            where = RunFolder.open(folder or run.path)
            connection, key = self.connection(run.prover), self.signing(run.prover)
            for data in responding.respond(where, connection, key, challenge, Path(work)):
                file.write(data)
        return out

    def settle(
        self, run: Registered, verifier: Verifier, announced: tuple[ChallengeFolder, Challenge], out: Path,
        answer: Path | None = None, *, options: Options = Options(),     # noqa: B008  # frozen
    ) -> Receipt:  # fmt: skip
        """Answer, verification and receipt, with the follow-up where there is one; the evidence goes to `out`.

        Without `options.follow_up` the verdict is what the first answer shows: a forger has no gradients to show.
        """
        folder, challenge = announced
        opened = answer or self.opening(run, challenge, out.with_suffix(".opening"))
        try:
            with opened.open("rb") as file:
                receipt = verify_answer(verifier, folder, challenge, file, out, options)
        except GradientsWanted:
            challenge = replace(challenge, gradients=True)
            with self.opening(run, challenge, out.with_suffix(".gradients")).open("rb") as file:
                receipt = verify_answer(verifier, folder, challenge, file, out, options)
        take_receipt(run.folder, receipt)
        return receipt


@contextmanager
def at_home(home: Path) -> Iterator[None]:
    """POLCOMMIT_HOME, for as long as this lasts."""
    before = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("POLCOMMIT_")}
    os.environ["POLCOMMIT_HOME"] = str(home)
    try:
        yield
    finally:
        del os.environ["POLCOMMIT_HOME"]
        os.environ.update(before)


def ended(process: subprocess.Popen[str], timeout: float = 300) -> Finished:
    """Wait for a command."""
    with process:
        stdout, stderr = process.communicate(timeout=timeout)
    return Finished(process.returncode, stdout, stderr)


def train(
    path: Path, *, die_in: int | None = None, self_check: SelfCheck = "off", rollback: bool = False,
    poke: Callable[[Any, int], None] | None = None,
) -> int:  # fmt: skip
    """Record a run in this process; with `die_in`, end without closing while that step is not committed yet."""
    try:
        with record(path, self_check=self_check, rollback=rollback) as run:
            for batch in run:
                run.step(batch)
                if poke is not None:
                    poke(run.state, batch.step)
                if batch.step == die_in:
                    raise Interrupted
            done = run.steps_done
    except Interrupted:
        return (die_in or 0) - 1
    return done


class InThisProcess:
    """The verifier's `Replayer`, without a process of its own: the worker's own code, for what is done many times.

    Equal jobs have equal reports, so each is run once.
    """

    def __init__(
        self, threads: int | None = None, device: str = "cpu", recipes: tuple[str, ...] = (), settings: Any = None
    ) -> None:
        del threads, device, recipes, settings
        self.reports: dict[bytes, ReplayReport] = {}
        self.runs = 0

    def replay(
        self, job: ReplayJob, blobs: Path, progress: Callable[[int, int], None] | None = None
    ) -> ReplayReport:
        key = digest(job)
        if key not in self.reports:
            self.runs += 1
            with files(job) as (inward, outward):
                worker._replay(str(blobs), "cpu", "0", inward, outward)
                self.reports[key] = decode(Path(outward).read_bytes(), ReplayReport)
        return self.reports[key]


def regenerate_here(folder: Path, job: RegenerateJob, blobs: Path, *, progress: Any = None) -> RegenerateReport:
    """The prover's side of the same."""
    with files(job) as (inward, outward):
        worker._regenerate(str(blobs), str(folder), "0", inward, outward)
        return decode(Path(outward).read_bytes(), RegenerateReport)


@contextmanager
def files(job: Record) -> Iterator[tuple[str, str]]:
    """A file with the job, and the place for the report."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job").write_bytes(encode(job))
        yield str(Path(folder) / "job"), str(Path(folder) / "report")


@contextmanager
def one_process() -> Iterator[None]:
    """Re-execution without processes of its own, which each load torch: for what is not about processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responding, "regenerate", regenerate_here)
        patch.setattr(answering, "ProcessReplayer", InThisProcess)
        yield


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Change one bit of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


class Recording:
    """The three lines in a process of their own."""

    def __init__(self, world: World, run: Registered, workers: int, last: int | None = None) -> None:
        command = [PYTHON, str(HERE / "three_lines.py"), str(run.path), str(workers)]
        self.process = subprocess.Popen(
            command + ([str(last)] if last is not None else []),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=world.environment(run.prover),
            text=True,
        )
        self.path = run.path

    def _steps(self) -> Iterator[int]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield int(line.split()[0])

    def kill_at(self, step: int) -> bytes:
        """SIGKILL once this step has run; returns the journal as it is left."""
        with self.process:
            for done in self._steps():
                if done >= step:
                    break
            self.kill()
        assert self.process.returncode == -signal.SIGKILL
        return (self.path / "journal").read_bytes()

    def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        self.process.kill()
        self.process.communicate()

    def finish(self) -> list[int]:
        """To its end; the steps that it ran."""
        with self.process:
            steps = list(self._steps())
            assert self.process.stderr is not None
            stderr = self.process.stderr.read()
        assert self.process.returncode == 0, stderr
        return steps
