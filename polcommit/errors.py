"""Every error polcommit raises on purpose.

    PolcommitError
    ├── UsageError                 the call or the command line is wrong               exit status 2
    │   ├── MissingExtra           an optional dependency is not installed
    │   └── Contradiction          a value contradicts what the run was registered with
    ├── VerificationError          'no': something was checked and is wrong            exit status 1
    │   ├── EncodingError          bytes are not the one encoding of a valid record
    │   ├── ProofError             a Merkle proof does not lead to its root
    │   │   └── RootMismatch
    │   ├── SignatureInvalid       a signature is not by the key it names
    │   └── Refuted                a numbered verification step found a contradiction
    └── Unavailable                'could not check', or could not be done             exit status 3
        ├── ChainUnavailable       no answer from the chain
        ├── WrongChain             the chain, contract or code is not the policy's
        ├── TransactionFailed      the chain refused or dropped a transaction
        │   └── Superseded         another one took its place: it can be signed anew
        ├── KeyUnavailable         a key file is missing, or its passphrase is wrong
        ├── StorageError           a file is missing, damaged, or could not be written
        ├── ProverUnavailable      the prover's side did not answer in time, or at all
        ├── GradientsWanted        digests do not settle a challenge: it is to be answered with gradients
        ├── BudgetExhausted        the manifest's disclosure budget does not cover the challenge
        ├── NotReproducible        this machine cannot reproduce its own training step
        └── DataChanged            the data set is random, or not the one that was registered

'No' and 'could not check' never share a branch. An error has a message (what failed, lower case, no
full stop) and, where there is something to do, a hint.
"""

from __future__ import annotations


class PolcommitError(Exception):
    """Base of the tree. `hint` says what to do next; `exit_status` is what a command ends with."""

    exit_status = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint is not None:
            self.add_note(f"hint: {hint}")      # for those who see a traceback, in a loop of their own


class UsageError(PolcommitError):
    """The caller asked for something that cannot be asked for."""

    exit_status = 2


class MissingExtra(UsageError):
    """An optional dependency is needed and not installed."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the '{extra}' extra", hint=f"pip install 'polcommit[{extra}]'")
        self.extra = extra


class Contradiction(UsageError):
    """A value contradicts what the run was registered with."""

    def __init__(self, what: str, *, registered: object, given: object) -> None:
        super().__init__(
            f"{what} is {given!r}, but the run was registered with {registered!r}",
            hint="leave it out, or register another run",
        )


class VerificationError(PolcommitError):
    """Something was checked, and the answer is no."""

    exit_status = 1


class EncodingError(VerificationError, ValueError):
    """Bytes are not the one encoding of a valid value, or a value has no encoding.

    Where it says 'no' about somebody's message it becomes a finding (V1); one that escapes as it is says that
    something could not be done.
    """

    exit_status = 3


class ProofError(VerificationError):
    """A Merkle proof does not fit its tree. `expected` and `computed` are roots, where there are any."""

    def __init__(self, message: str, *, expected: bytes | None = None, computed: bytes | None = None) -> None:
        super().__init__(message)
        self.expected = expected
        self.computed = computed


class RootMismatch(ProofError):
    """A well-formed proof leads to another root."""

    def __init__(self, *, expected: bytes, computed: bytes) -> None:
        super().__init__(
            f"proof leads to root {computed.hex()}, expected {expected.hex()}",
            expected=expected,
            computed=computed,
        )


class SignatureInvalid(VerificationError):
    """A signature is not by the key that it names, over the message that it comes with."""


class Refuted(VerificationError):
    """A numbered verification step (V1 to V13) found a contradiction; it becomes a finding in the verdict."""

    def __init__(
        self, check: str, what: str, *, expected: object = None, found: object = None, at: int | None = None
    ) -> None:
        where = "" if at is None else f" at step {at}"
        super().__init__(f"{check}: {what}{where}: expected {_short(expected)}, found {_short(found)}")
        self.check = check
        self.what = what
        self.at = at
        self.expected = _short(expected)
        self.found = _short(found)


class Unavailable(PolcommitError):
    """It could not be checked, or could not be done: not a 'no'."""


class ChainUnavailable(Unavailable):
    """The chain's RPC server does not answer, or not with what was asked for."""


class WrongChain(Unavailable):
    """Chain id, genesis block, contract address or contract code differ from the policy's."""


class TransactionFailed(Unavailable):
    """A transaction was refused, reverted or dropped; nothing was recorded as sent."""


class Superseded(TransactionFailed):
    """A signed transaction can no longer be mined: its account's nonce was used by another one."""


class KeyUnavailable(Unavailable):
    """A key file is missing or unreadable, or the passphrase is wrong."""


class StorageError(Unavailable):
    """A file is missing, truncated or damaged, or the disk is full; what was written before is untouched."""


class ProverUnavailable(Unavailable):
    """The prover's side did not answer."""


class GradientsWanted(Unavailable):
    """A challenge cannot be settled by digests: it is to be answered once more, with gradients."""


class BudgetExhausted(Unavailable):
    """Answering would disclose more steps or samples than the manifest allows this verifier."""


class NotReproducible(Unavailable):
    """This machine did not reproduce a step that it, or another, recorded."""


class DataChanged(Unavailable):
    """Reading a sample twice gave two results, or the data set is not the one that was registered."""


def _short(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."
