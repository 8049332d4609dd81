"""polcommit challenge: the verifier's side, from draw to verdict."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import click

from polcommit.cli import common
from polcommit.cli.asking import ProverCommand
from polcommit.cli.present import verdict_json, verdict_text
from polcommit.cli.register import require_torch
from polcommit.cli.steps import Asked, ask_for
from polcommit.errors import GradientsWanted, PolcommitError, ProverUnavailable, Refuted, StorageError, UsageError

if TYPE_CHECKING:
    from polcommit.comparisons import ReleasedModel
    from polcommit.records import Challenge as ChallengeRecord
    from polcommit.records import Evidence, Receipt
    from polcommit.session.answer import Options
    from polcommit.session.challenge import Verifier
    from polcommit.session.environments import EnvironmentSettings
    from polcommit.session.pending import ChallengeFolder, Challenges

STATUS = {"accepted": 0, "rejected": 1, "inconclusive": 3}


@click.command()
@click.argument("run")
@click.option("--steps", default="random", show_default=True, metavar="HOW", help="'random', 'mixed', 'top-q', "
              "or steps like 3,17,40-42.")  # fmt: skip
@click.option("--count", type=click.IntRange(1), help="How many steps to draw; default: as --detect 0.95.")
@click.option("--detect", type=float, metavar="P", help="Draw as many as detect, with probability P, ...")
@click.option("--fraction", type=float, metavar="F", help="... a run of which this fraction is forged; "
              "default: the policy's.")  # fmt: skip
@click.option("--prover", metavar="CMD", help="Command that answers, such as 'ssh host polcommit respond --stdio RUN'.")
@click.option("--request", type=common.FILE, help="Write the request there, for the prover, and stop.")
@click.option("--opening", type=common.FILE, help="Go on with the opening that the prover wrote there.")
@click.option("--resume", type=click.IntRange(1), metavar="ID", help="Finish an interrupted challenge: the same draw.")
@click.option("--head", type=click.IntRange(1), metavar="N", help="Challenge that anchored head; default: the last.")
@click.option("--gradients", is_flag=True, help="Ask for gradients at once, to re-execute in another environment.")
@click.option("--no-follow-up", is_flag=True, help="Where digests do not settle it, give the verdict as it stands.")
@click.option("--profile", "profiles", type=common.FILE, multiple=True, help="Noise profile of two environments, "
              "besides the policy's and the shipped ones.")  # fmt: skip
@click.option("--with-openings", is_flag=True, help="Put states and samples into the bundle, in clear.")
@click.option("--model", type=common.FILE, help="Released model (safetensors) to compare with the last state.")
@click.option("--out", type=common.FILE, help="Where to write the evidence bundle.")
@click.option("--receipt", type=common.FILE, help="Also write the signed verdict there, for the prover to keep.")
@common.replay_options
@common.key_options
@common.chain_options
@common.json_option
def challenge(
    run: str,
    steps: str,
    count: int | None,
    detect: float | None,
    fraction: float | None,
    prover: str | None,
    request: Path | None,
    opening: Path | None,
    resume: int | None,
    head: int | None,
    gradients: bool,
    no_follow_up: bool,
    profiles: tuple[Path, ...],
    with_openings: bool,
    model: Path | None,
    threads: int | None,
    device: str | None,
    settings: EnvironmentSettings,
    recipes: tuple[str, ...],
    out: Path | None,
    receipt: Path | None,
    key: str | None,
    account: Path | None,
    passphrase_file: Path | None,
    policy: Path | None,
    rpc: str | None,
    contract: str | None,
    as_json: bool,
) -> int:
    """Draw steps of RUN, have exactly those opened, re-execute them, and give a verdict.

    RUN is a run id; or a run folder on this machine, which stands for its id and for a prover responding from
    it. Exit status: 0 accepted, 1 rejected, 2 usage, 3 could not be checked.
    """
    from polcommit.ledger.accounts import address_of
    from polcommit.session import noise
    from polcommit.session.answer import Options
    from polcommit.session.challenge import Verifier

    identifier, command = _run_and_prover(run, prover)
    _require_one_way(prover, command, request, opening)
    if gradients and no_follow_up:
        raise UsageError("--gradients and --no-follow-up exclude one another")
    ask = replace(ask_for(steps, count, detect, fraction, with_openings), gradients=gradients)
    common.require_writable(out or Path("evidence"), request, receipt)
    options = Options(_model(model), threads, device, recipes, settings=settings, demanded=noise.read(profiles))
    chain = common.connection(policy, rpc, contract)
    unlocked = common.unlock(key, "verifier", passphrase_file, account)
    assert unlocked.recipient is not None
    chain.fund(address_of(unlocked.account), common.say)
    verifier = Verifier(chain, unlocked.signing, unlocked.recipient, unlocked.account)
    options = replace(options, profiles=noise.known(chain.policy), follow_up=not no_follow_up)
    job = _Job(verifier, identifier, options, out, receipt, as_json)
    if opening is not None:
        return job.finish_from_file(opening)
    pending = job.resume(resume) if resume is not None else job.begin(ask, head)
    if pending is None:
        return STATUS["rejected"]
    if request is not None:
        return job.write_request(pending, request)
    assert command is not None
    return job.ask_prover(pending, command)


def _require_one_way(prover: str | None, command: list[str] | None, request: Path | None, opening: Path | None) -> None:
    """One way to an answer, and with an answer what re-executing its steps takes."""
    if sum(way is not None for way in (prover, request, opening)) > 1:
        raise UsageError("--prover, --request and --opening exclude one another")
    if request is not None:
        return
    require_torch("re-executing steps")
    if command is None and opening is None:
        raise UsageError("nobody is there to answer", hint="give --prover CMD, or --request FILE for the prover")


def _run_and_prover(run: str, prover: str | None) -> tuple[bytes, list[str] | None]:
    """The run's id, and the command that answers for it. A folder is only ever read by the prover's own process."""
    command = _command(prover) if prover is not None else None
    if not Path(run).is_dir():
        try:
            return common.run_id(run), command
        except UsageError as error:
            raise UsageError(f"{run!r} is neither a run's folder nor a run id", hint=error.hint) from error
    own = [sys.executable, "-m", "polcommit.cli.main", "respond"]
    found = subprocess.run([*own, "--print-run", "--", run], capture_output=True, text=True)
    if found.returncode != 0:
        said = [line.removeprefix("polcommit: ") for line in found.stderr.splitlines() if line.startswith("polcommit:")]
        raise StorageError((said or ["no answer"])[0], hint="give a run id, or the folder of a run")
    return common.run_id(found.stdout.strip()), command or [*own, "--stdio", "--", run]


def _command(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--prover {text!r}: {str(error).lower()}", hint="quote it as for a shell") from error
    if not words:
        raise UsageError("--prover names no command", hint="such as 'ssh host polcommit respond --stdio RUN'")
    return words


def _model(path: Path | None) -> ReleasedModel | None:
    if path is None:
        return None
    from polcommit.session.released import read_model

    return read_model(path)


@dataclass(frozen=True, slots=True)
class _Job:
    """One run of the command."""

    verifier: Verifier
    run: bytes
    options: Options
    out: Path | None
    receipt: Path | None
    as_json: bool

    def begin(self, asked: Asked, sequence: int | None) -> ChallengeFolder | None:
        """A new challenge; None where the anchor itself was refuted, and the verdict given."""
        from polcommit.session import challenge as challenging

        challenges = self._challenges()
        for number in challenges.waiting(self.run):
            common.say(
                f"warning: challenge {number} has no verdict yet; finish it with --resume {number}: "
                "until then no later verdict is better than inconclusive"
            )
        anchor = challenging.find_anchor(self.verifier, self.run, sequence)
        try:
            head = challenging.open_head(self.verifier, anchor)
        except Refuted as error:
            self._deliver(challenging.reject_anchor(self.verifier, anchor, error))
            return None
        ask = asked.of(head.statement.steps, self.verifier.connection.policy.fraction)
        folder = challenges.new(self.run)
        challenging.begin(self.verifier, folder, anchor, head, ask)
        return folder

    def _challenges(self) -> Challenges:
        from polcommit.keys import default_home
        from polcommit.session.pending import Challenges

        return Challenges(default_home())

    def resume(self, number: int) -> ChallengeFolder:
        """A challenge that was begun before."""
        return self._challenges().resume(self.run, number)

    def _send(self, folder: ChallengeFolder) -> ChallengeRecord:
        from polcommit.session import challenge as challenging

        try:
            with common.progress("waiting for the draw") as bar:
                challenge = challenging.send(self.verifier, folder, bar)
        except BaseException:
            if folder.pending is not None:      # signed, and perhaps sent
                _say_resumable(folder.id or self._challenges().waiting(self.run)[-1])
            raise
        return replace(challenge, gradients=challenge.gradients and self.options.follow_up)

    def write_request(self, folder: ChallengeFolder, path: Path) -> int:
        """The first of the three files."""
        from polcommit.session.wire import message
        from polcommit.storage import files

        challenge = self._send(folder)
        with _resumable(challenge.id):
            files.write_atomic(path, message(challenge))
        common.show({"challenge": challenge.id, "request": str(path)}, self.as_json)
        common.say("send it to the prover, who answers with 'polcommit respond FOLDER --request FILE --out FILE'")
        return 0

    def finish_from_file(self, path: Path) -> int:
        """The second of the three files is there: verify it."""
        from polcommit.session.wire import read_answer

        try:
            with path.open("rb") as file:
                number = read_answer(file).id
        except OSError as error:
            why = common.reason(error)
            raise StorageError(f"cannot read {path} ({why})", hint="give the prover's opening") from error
        except (PolcommitError, ValueError) as error:
            hint = "have the prover respond again"
            raise ProverUnavailable(f"{path} is not an opening: {error}", hint=hint) from error
        folder = self._challenges().resume(self.run, number)
        with path.open("rb") as file, _resumable(number):
            try:
                return self._verify(folder, self._send(folder), file)[0]
            except GradientsWanted as wanted:
                hint = f"write the follow-up for the prover: 'polcommit challenge RUN --resume {number} --request FILE'"
                raise GradientsWanted(wanted.message, hint=hint) from wanted

    def ask_prover(self, folder: ChallengeFolder, command: list[str]) -> int:
        """Start the prover's command, and exchange request, opening and receipt on its pipes."""
        from polcommit.session.wire import message

        challenge = self._send(folder)
        resume = f"when it can answer: 'polcommit challenge RUN --resume {challenge.id}', with the same draw"
        try:
            prover = ProverCommand(command)
        except ProverUnavailable as error:
            raise ProverUnavailable(error.message, hint=resume) from error
        with prover, _resumable(challenge.id):
            prover.send(message(challenge))
            try:
                status, receipt = self._conversation(folder, challenge, prover)
            except ProverUnavailable as error:
                why = prover.complaint() or error.message
                raise ProverUnavailable(
                    f"the prover's command did not answer challenge {challenge.id}: {why}", hint=resume
                ) from error
            prover.send(message(receipt))
        return status

    def _conversation(
        self, folder: ChallengeFolder, challenge: ChallengeRecord, prover: ProverCommand
    ) -> tuple[int, Receipt]:
        """The answer, verified; where digests do not settle it, once more with gradients."""
        from polcommit.session.wire import message

        try:
            return self._verify(folder, challenge, prover.answers)
        except GradientsWanted as wanted:
            common.say(wanted.message)
        challenge = replace(challenge, gradients=True)
        prover.send(message(challenge))
        try:
            return self._verify(folder, challenge, prover.answers)
        except ProverUnavailable:
            common.say(f"'--resume {challenge.id} --no-follow-up' gives the verdict as it stands without them")
            raise

    def _verify(self, folder: ChallengeFolder, challenge: ChallengeRecord, answer: IO[bytes]) -> tuple[int, Receipt]:
        from typing import BinaryIO

        from polcommit.session import bundle
        from polcommit.session.answer import verify_answer

        path = self._path(challenge.id)
        with common.progress("re-executing") as bar:
            stream = cast(BinaryIO, answer)
            receipt = verify_answer(
                self.verifier, folder, challenge, stream, path, self.options, bar
            )
        self._report(bundle.read(path).evidence, path)
        return STATUS[receipt.verdict.verdict], receipt

    def _deliver(self, evidence: Evidence) -> None:
        from polcommit.session import bundle

        path = self._path(0)
        bundle.write(path, evidence, None)
        self._report(evidence, path)

    def _path(self, number: int) -> Path:
        return self.out or Path(f"evidence-{self.run.hex()[:8]}-{number}.polcommit")

    def _report(self, evidence: Evidence, path: Path) -> None:
        from polcommit.session.wire import message
        from polcommit.storage import files

        verdict = evidence.receipt.verdict
        if self.receipt is not None:
            files.write_atomic(self.receipt, message(evidence.receipt))
        common.show(verdict_json(verdict) | {"evidence": str(path)}, self.as_json, verdict_text(verdict))
        if verdict.request is not None and verdict.request.clear_openings and evidence.openings is None:
            common.say("warning: the bundle holds no openings in clear: the manifest permits none, or there were none")
        common.say(f"evidence: {path}")


@contextmanager
def _resumable(number: int) -> Iterator[None]:
    """Where a challenge that is paid for does not come to its verdict, say how it can."""
    try:
        yield
    except ProverUnavailable:       # its hint says so
        raise
    except BaseException:
        _say_resumable(number)
        raise


def _say_resumable(number: int) -> None:
    common.say(f"challenge {number} has no verdict yet: finish it with --resume {number}, with the same draw")
