"""An honest verifier, and all of it together: chain, prover, verifier, and what comes of it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fakes.chain import MemoryLedger, named, policy_for
from fakes.proving import Opening, Prover
from fakes.replaying import HonestReplayer
from polcommit import transcript as hashes
from polcommit.comparisons import ReleasedModel
from polcommit.encoding import Record, decode, digest, encode
from polcommit.envelopes import open_envelope, purpose_of
from polcommit.errors import EncodingError, Refuted
from polcommit.events import Anchored, ChainIdentity, Challenged
from polcommit.keys import key_id
from polcommit.policy import Policy
from polcommit.profiles import Profile
from polcommit.records import (
    Challenge,
    Eligible,
    Evidence,
    Receipt,
    Request,
    RevealedHead,
)
from polcommit.sealing import unseal
from polcommit.signing import challenge_message, public_bytes, sign, sign_verdict
from polcommit.storage.blobs import BlobFolder
from polcommit.verifier import Verification


@dataclass(frozen=True)
class Verifier:
    """Keys of one who challenges."""

    name: str = "verifier"
    key: Ed25519PrivateKey = field(init=False)
    recipient: X25519PrivateKey = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", Ed25519PrivateKey.from_private_bytes(named(self.name, "signing key")))
        object.__setattr__(self, "recipient", X25519PrivateKey.from_private_bytes(named(self.name, "recipient")))

    @property
    def public(self) -> bytes:
        return public_bytes(self.key)

    def eligible(self, *, steps: int = 100, samples: int = 1000) -> Eligible:
        """How a manifest names this verifier."""
        recipient = self.recipient.public_key().public_bytes_raw()
        return Eligible(key=self.public, recipient=recipient, steps=steps, samples=samples)

    def unsealed(self, chain: ChainIdentity, anchor: Anchored) -> RevealedHead:
        """What this verifier finds in the envelope on the ledger. Raises SealBroken."""
        envelope = open_envelope(anchor)
        me = key_id(self.recipient.public_key().public_bytes_raw())
        purpose = purpose_of("anchor", chain, anchor.run, anchor.sequence, envelope.prover, me)
        sealed = next(sealed for sealed in envelope.sealed if sealed.recipient == me[:8])
        return decode(unseal(sealed.ciphertext, self.recipient, purpose), RevealedHead)

    def request(
        self, anchor: Anchored, count: int = 4, *, steps: tuple[int, ...] = (), strategy: str = "random"
    ) -> Request:
        return Request(
            run=anchor.run,
            commitment=anchor.commitment,
            verifier=self.public,
            strategy="list" if steps else strategy,
            count=len(steps) or count,
            steps=steps,
            clear_openings=False,
        )

    def announce(self, ledger: MemoryLedger, request: Request, nonce: bytes = named("nonce")) -> Challenged:
        """Send the challenge, and pay for it."""
        content = {
            "commitment": request.commitment,
            "request": digest(request),
            "nonce_commitment": hashes.nonce_commitment(nonce),
        }
        chain = ledger.chain
        message = challenge_message(chain_id=chain.chain_id, contract=chain.contract, run=request.run, **content)
        signature = sign(self.key, "sign/challenge", message)
        return ledger.challenge(request.run, verifier=self.public, signature=signature, **content)

    def challenge(
        self,
        ledger: MemoryLedger,
        anchor: Anchored,
        count: int = 4,
        *,
        steps: tuple[int, ...] = (),
        nonce: str = "nonce",
        gradients: bool = False,
        strategy: str = "random",
    ) -> Challenge:
        """Announce a challenge, and wait until its draw is fixed."""
        request = self.request(anchor, count, steps=steps, strategy=strategy)
        event = self.announce(ledger, request, named(nonce))
        ledger.settle()
        return Challenge(
            request=request, nonce=named(nonce), id=event.id, block=event.position.block, gradients=gradients
        )

    def verify(
        self,
        ledger: MemoryLedger,
        challenge: Challenge,
        attested: RevealedHead,
        opening: Opening,
        *,
        policy: Policy | None = None,
        replayer: HonestReplayer | None = None,
        model: ReleasedModel | None = None,
        profiles: tuple[Profile, ...] = (),
        demanded: tuple[Profile, ...] = (),
        trusted: frozenset[bytes] = frozenset(),
    ) -> Verification:
        """All steps over what the prover sent, as far as they go."""
        verification = Verification(
            policy=policy or policy_for(ledger),
            ledger=ledger,
            replayer=replayer or HonestReplayer(),
            challenge=challenge,
            attested=attested,
            model=model,
            profiles=profiles,
            demanded=demanded,
            trusted=trusted,
        )
        if not verification.take_disclosure(encode(opening.disclosure)):
            return verification
        due = verification.take_openings(encode(opening.openings))
        if due is None:
            return verification
        with tempfile.TemporaryDirectory() as folder:
            try:
                BlobFolder(Path(folder)).receive([opening.blobs[blob.content] for blob in due], due)
            except EncodingError as error:
                what = "contents of states and samples"
                verification.reject(Refuted("V8", what, expected="as committed", found=error))
                return verification
            verification.take_blobs(Path(folder))
        return verification

    def signed(self, verification: Verification) -> Receipt:
        return sign_verdict(self.key, verification.verdict(self.public))


# --- all of it ------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A chain, a prover with a finished run of 12 steps in two heads, and a verifier who challenges it."""

    ledger: MemoryLedger
    prover: Prover
    verifier: Verifier
    anchor: Anchored = field(init=False)        # the last one

    def challenge(self, count: int = 4, **options: Any) -> Challenge:
        return self.verifier.challenge(self.ledger, self.anchor, count, **options)

    def verify(self, challenge: Challenge, opening: Opening, **options: Any) -> Verification:
        """The verifier's own view: the head is what the ledger's envelope holds."""
        attested = options.pop("attested", None) or self.verifier.unsealed(self.ledger.chain, self.anchor)
        return self.verifier.verify(self.ledger, challenge, attested, opening, **options)

    def evidence(self, verification: Verification, *, clear: bool = False) -> Evidence:
        """The bundle, with its signed verdict."""
        openings = verification.openings if clear else None
        receipt = self.verifier.signed(verification)
        return Evidence(receipt=receipt, disclosure=verification.disclosure, openings=openings)


def scene(cheat: type[Prover] = Prover, *, heads: Sequence[int] = (5, 7), **options: Any) -> Scene:
    """A run by this prover, anchored after so many steps each."""
    ledger = options.pop("ledger", None) or MemoryLedger()
    verifier = options.pop("verifier", None) or Verifier()
    eligible = options.pop("eligible", None) or (verifier.eligible(), Verifier("another verifier").eligible())
    prover = cheat(ledger, *eligible, **options).register()
    staged = Scene(ledger, prover, verifier)
    for steps in heads:
        staged.anchor = prover.train(steps).anchor()
    return staged


def changed(record: Any, **fields: Any) -> Any:
    """`dataclasses.replace` into nested records: `changed(e, receipt__verdict__size=3)`."""
    for path, value in fields.items():
        name, _, rest = path.partition("__")
        new = changed(getattr(record, name), **{rest: value}) if rest else value
        record = replace(record, **{name: new})
    return record


def parts_of(record: Record) -> dict[str, Any]:
    """A record's fields by name."""
    return {entry.name: getattr(record, entry.name) for entry in dataclasses.fields(record)}  # type: ignore[arg-type]
