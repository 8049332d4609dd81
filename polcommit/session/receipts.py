"""Signed verdicts, as the prover keeps them. Needs neither torch nor a chain."""

from __future__ import annotations

from polcommit.errors import EncodingError, SignatureInvalid, UsageError
from polcommit.records import Receipt
from polcommit.signing import verify_receipt
from polcommit.storage.runfolder import RunFolder


def take_receipt(folder: RunFolder, receipt: Receipt) -> None:
    """Keep a signed verdict; later openings must include it.

    Raises:
        UsageError: it is not a verdict about this run, by the verifier that was answered under this id.
        StorageError: there is another receipt of this challenge already: the first one stays.
    """
    verdict = receipt.verdict
    registration = folder.registration
    try:
        verify_receipt(receipt)
    except (SignatureInvalid, EncodingError) as error:
        raise UsageError(f"not a receipt: {error}") from error
    if registration is None or verdict.run != registration.registered.run or verdict.challenge_id is None:
        raise UsageError(f"a receipt of run {verdict.run.hex()}, which is not the one in {folder.path}")
    answered = folder.disclosed().get(verdict.challenge_id)
    if answered is None or answered.verifier != verdict.verifier:
        raise UsageError(
            f"a receipt of challenge {verdict.challenge_id} by {verdict.verifier.hex()}, which was not answered here"
        )
    folder.write_receipt(verdict.challenge_id, receipt)
