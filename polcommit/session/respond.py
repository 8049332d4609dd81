"""The prover's answer to a challenge (spec §5.3): found on the ledger, within the budget, regenerated, sealed.

What is disclosed is noted durably before a byte of it leaves. A state that this machine does not get back is an
error here and no answer: the challenge stays unanswered, and can be answered from the right machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from polcommit import transcript as hashes
from polcommit.draws import Added, Drawn
from polcommit.encoding import encode, tag
from polcommit.envelopes import purpose_of
from polcommit.errors import BudgetExhausted, Unavailable, UsageError
from polcommit.events import ChainIdentity
from polcommit.keys import key_id
from polcommit.opening import MAX_RECORD, frame, opening_blobs
from polcommit.prover import (
    Run,
    accept_challenge,
    make_disclosure,
    make_openings,
    receipts_that_count,
    require_budget,
)
from polcommit.records import (
    Challenge,
    Disclosure,
    Gradient,
    OpenedState,
    OpeningKey,
    Openings,
    SealedOpening,
    StateIndex,
)
from polcommit.replaying import RegenerateJob, RegenerateReport
from polcommit.sealing import new_stream_key, seal, seal_stream
from polcommit.session.connection import Connection
from polcommit.session.processes import regenerate
from polcommit.session.recipes import run_recipe
from polcommit.session.run import load_run
from polcommit.session.wire import chunked, message
from polcommit.signing import opening_message, sign, sign_refusal
from polcommit.storage.blobs import BlobFolder
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.types import Disclosed

Progress = Callable[[int, int], None]


def respond(
    folder: RunFolder,
    connection: Connection,
    key: Ed25519PrivateKey,
    challenge: Challenge,
    work: Path,
    progress: Progress | None = None,
) -> Iterator[bytes]:
    """The framed answer to a challenge, piece by piece; bulky things go through the folder `work`.

    Raises:
        Refuted: the challenge is not on the ledger as it says, or its verifier is not eligible.
        NotReproducible, DataChanged: this machine cannot bring back what is asked for.
    """
    with folder.lock():
        recipe = run_recipe(folder)
        run = load_run(folder, recipe.learning_rate)
        _await_draw(run, connection, challenge)
        chain = connection.ledger.identity()
        disclosed = {number: (shown.verifier, shown.steps) for number, shown in folder.disclosed().items()}
        try:
            drawn = accept_challenge(run, connection.ledger, chain, challenge, disclosed)
            report = regenerate(folder.path, _job(challenge, drawn), work, progress=progress)
            drawn = drawn.with_added(Added(steps=report.added, fine=report.fine, pinned=report.pinned))
            require_budget(run, challenge, drawn, disclosed)
        except BudgetExhausted as error:
            refusal = sign_refusal(
                key, run=run.id, challenge_id=challenge.id, reason="budget", detail=error.message[:1000]
            )
            folder.write_disclosed(challenge.id, Disclosed(verifier=challenge.request.verifier, steps=()))
            yield message(refusal)
            return
        receipts = receipts_that_count(run, connection.ledger, chain, challenge.id)
        disclosure = make_disclosure(replace(run, receipts=receipts), challenge, drawn)
        openings = make_openings(run, drawn, _states(report), dict(report.sketches), _follow_up(report))
        if max(len(encode(disclosure)), len(encode(openings))) > MAX_RECORD:
            raise UsageError(
                f"an opening of {len(drawn.challenged)} steps is larger than a verifier reads",
                hint="the verifier must ask for fewer steps in one challenge",
            )
        folder.write_disclosed(challenge.id, Disclosed(verifier=challenge.request.verifier, steps=drawn.challenged))
    yield from sealed_answer(run, chain, key, challenge, lambda: payload_of(disclosure, openings, work))


def _await_draw(run: Run, connection: Connection, challenge: Challenge) -> None:
    """Wait for the block of the randomness, behind the one that the chain names: a request can name any."""
    ledger = connection.ledger
    event = next((event for event in ledger.challenges(run.id) if event.id == challenge.id), None)
    if event is not None:
        ledger.wait_final(event.position.block + hashes.DELAY)
    elif ledger.latest() < challenge.block:
        raise Unavailable(
            f"challenge {challenge.id} is not on this chain, which has not come to its block {challenge.block}",
            hint="was the devnet reset? give the chain that it was sent on with --rpc",
        )


def payload_of(disclosure: Disclosure, openings: Openings, work: Path) -> Iterator[bytes]:
    """The payload of an opening whose bulky things lie in `work`, piece by piece."""
    yield from frame(encode(disclosure), encode(openings))
    yield from BlobFolder(work).stream(blob.content for blob in opening_blobs(openings))


def sealed_answer(
    run: Run, chain: ChainIdentity, key: Ed25519PrivateKey, challenge: Challenge, payload: Callable[[], Iterator[bytes]]
) -> Iterator[bytes]:
    """The payload under a fresh key, and that key with the payload's signed digest sealed to the verifier."""
    hasher = blake3(tag("payload"))
    for chunk in payload():
        hasher.update(chunk)
    digest = hasher.digest()
    signed = opening_message(run=run.id, challenge_id=challenge.id, payload=digest)
    stream_key = new_stream_key()
    inner = OpeningKey(key=stream_key, payload=digest, signature=sign(key, "sign/opening", signed))
    verifier = run.manifest.eligible(challenge.request.verifier)
    assert verifier is not None     # accept_challenge has seen to it
    purpose = purpose_of("opening", chain, run.id, challenge.id, run.manifest.prover, key_id(verifier.recipient))
    sealed = seal(encode(inner), verifier.recipient, purpose)
    yield message(SealedOpening(run=run.id, id=challenge.id, sealed=sealed))
    yield from chunked(seal_stream(payload(), stream_key, signed))


def _job(challenge: Challenge, drawn: Drawn) -> RegenerateJob:
    return RegenerateJob(
        request=challenge.request,
        seed=drawn.seed,
        drawn=drawn.steps,
        kept=drawn.kept,
        opened_kept=drawn.opened_kept,
        gradients=challenge.gradients,
    )


def _states(report: RegenerateReport) -> dict[int, StateIndex]:
    return {state.step: state.index for state in report.states}


def _follow_up(report: RegenerateReport) -> tuple[tuple[Gradient, ...], tuple[OpenedState, ...]] | None:
    if report.gradients is None or report.next_states is None:
        return None
    return report.gradients, report.next_states
