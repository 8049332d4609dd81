"""polcommit respond: the prover's side of a challenge, on a pipe or in files."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import click

from polcommit.cli import common
from polcommit.encoding import Record
from polcommit.errors import EncodingError, ProverUnavailable, StorageError, Unavailable, UsageError

if TYPE_CHECKING:
    from polcommit.records import Challenge
    from polcommit.session.connection import Connection
    from polcommit.storage.runfolder import RunFolder

R = TypeVar("R", bound=Record)


@click.command()
@click.argument("folder", type=common.FOLDER)
@click.option("--stdio", is_flag=True, help="Exchange request, opening and receipt on standard input and output.")
@click.option("--request", type=common.FILE, help="The verifier's request, as a file.")
@click.option("--out", type=common.FILE, help="Where to write the opening.")
@click.option("--receipt", type=common.FILE, help="Keep the verdict that the verifier sent back.")
@click.option("--print-run", is_flag=True, help="Print the run's id, and do nothing else.")
@common.key_options
@common.chain_options
@common.json_option
def respond(
    folder: Path,
    stdio: bool,
    request: Path | None,
    out: Path | None,
    receipt: Path | None,
    print_run: bool,
    key: str | None,
    account: Path | None,
    passphrase_file: Path | None,
    policy: Path | None,
    rpc: str | None,
    contract: str | None,
    as_json: bool,
) -> None:
    """Answer a challenge of the run in FOLDER: check it on the ledger, regenerate the states, seal them.

    Use one of: --stdio; --request FILE --out FILE; --receipt FILE.
    """
    from polcommit.storage.runfolder import RunFolder

    run = RunFolder.open(folder)
    if print_run:
        from polcommit.session.run import require_registration

        click.echo(require_registration(run).registered.run.hex())
        return
    if receipt is not None:
        _keep_receipt(run, receipt)
        common.show({"kept": str(receipt)}, as_json)
        return
    if stdio == (request is not None) or (request is None) != (out is None):
        raise UsageError("give --stdio, or --request with --out, or --receipt")
    from polcommit.cli.register import require_torch

    require_torch("answering a challenge")
    common.require_writable(out)
    challenge = _challenge(request)
    chain = common.connection(policy, rpc, contract, remembered=run.settings.rpc)
    unlocked = common.unlock(key or run.settings.key, "prover", passphrase_file, account)
    if stdio:
        _on_pipes(run, chain, unlocked, challenge)
        return
    assert out is not None
    _in_files(run, chain, unlocked, challenge, out)
    common.show({"opening": str(out), "bytes": out.stat().st_size}, as_json)
    common.say("send it to the verifier, who goes on with 'polcommit challenge RUN --opening FILE'")


def _challenge(request: Path | None) -> Challenge:
    """What the verifier asks, from its file or from standard input: read before anything else is done."""
    from polcommit.records import Challenge
    from polcommit.storage import files

    if request is None:
        return _read(sys.stdin.buffer, Challenge, "standard input")
    with files.reported("reading", request), request.open("rb") as file:
        return _read(file, Challenge, str(request))


def _on_pipes(run: RunFolder, chain: Connection, unlocked: common.Unlocked, challenge: Challenge) -> None:
    from polcommit.records import Challenge as ChallengeRecord
    from polcommit.records import Receipt
    from polcommit.session.receipts import take_receipt
    from polcommit.session.respond import respond as answer
    from polcommit.session.wire import read_reply

    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    reply: Receipt | ChallengeRecord = challenge
    while isinstance(reply, ChallengeRecord):
        with tempfile.TemporaryDirectory(prefix="polcommit-") as work:
            for data in answer(run, chain, unlocked.signing, reply, Path(work)):
                stdout.write(data)
            stdout.flush()
        try:
            following = read_reply(stdin)
        except ProverUnavailable:
            common.say("the verifier sent no receipt: until it does, the challenge counts as unanswered")
            return
        except EncodingError as error:
            raise Unavailable(f"the verifier sent something else than a receipt: {error}") from error
        if isinstance(following, ChallengeRecord) and following != replace(reply, gradients=True):
            raise Unavailable("the verifier's follow-up is of another challenge, or no follow-up")
        if following == reply:
            raise Unavailable("the verifier asks for the same gradients again")
        reply = following
    take_receipt(run, reply)


def _in_files(
    run: RunFolder, chain: Connection, unlocked: common.Unlocked, challenge: Challenge, out: Path
) -> None:
    from polcommit.session.respond import respond as answer
    from polcommit.storage import files

    with tempfile.TemporaryDirectory(prefix="polcommit-") as work, common.progress("regenerating states") as bar:
        files.write_atomic(out, answer(run, chain, unlocked.signing, challenge, Path(work), bar))


def _keep_receipt(run: RunFolder, path: Path) -> None:
    from polcommit.records import Receipt
    from polcommit.session.receipts import take_receipt
    from polcommit.storage import files

    with files.reported("reading", path), path.open("rb") as file:
        receipt = _read(file, Receipt, str(path))
    take_receipt(run, receipt)


def _read(stream: BinaryIO, kind: type[R], what: str) -> R:
    from polcommit.session.wire import read_message

    try:
        return read_message(stream, kind)
    except (EncodingError, ProverUnavailable) as error:
        raise StorageError(
            f"{what} is not a {kind.__name__.lower()} of polcommit's: {error}", hint="have it sent again"
        ) from error
