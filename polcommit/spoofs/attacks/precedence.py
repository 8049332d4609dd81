"""Spoofs that claim another's run with nothing but what everybody can read on the ledger, or in its pool."""

from __future__ import annotations

from polcommit.encoding import decode, encode
from polcommit.envelopes import make_envelope, open_envelope, sealed_digest
from polcommit.errors import Refuted
from polcommit.events import Anchored, Registered
from polcommit.keys import key_id
from polcommit.ledger.registry import Registry
from polcommit.prover import next_head
from polcommit.records import Envelope, Sealed, Statement
from polcommit.sealing import derive, new_secret
from polcommit.session import challenge as challenging
from polcommit.session.run import load_run
from polcommit.signing import envelope_message, sign, sign_statement
from polcommit.spoofs.base import ProtocolSpoof
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt
from polcommit.spoofs.opponent.setting import Party
from polcommit.transcript import manifest_commitment


def replay(ledger: Registry, account_key: bytes, mine: Registered, theirs: Anchored) -> Anchored:
    """Send another prover's commitment and envelope again, as those of a registered run of one's own."""
    _, previous = ledger.head(mine.run)
    return ledger.anchor(account_key, mine.nonce, previous, theirs.commitment, theirs.envelope)


class FromTheLedger(ProtocolSpoof):
    """Base of what needs nothing but the ledger: a thief with a registered run, and no model."""

    family = "precedence"
    source = "polcommit"
    knows = frozenset({"envelope"})

    def registered(self, arena: Arena, thief: Party) -> Registered:
        """A run of the thief's: to the ledger it is like any other."""
        folder = arena.prepare(thief, post_hoc=False)
        commitment = manifest_commitment(derive(folder.secret, "blinding/manifest"), folder.manifest)
        return arena.connection.ledger.register(thief.account_key, commitment)

    def judged(self, arena: Arena, anchored: Anchored) -> Attempt:
        """What the verifier makes of the anchor."""
        try:
            challenging.open_head(arena.verifier, anchored)
        except Refuted as error:
            return Attempt.of(challenging.reject_anchor(arena.verifier, anchored, error).receipt.verdict)
        return Attempt.refused("the envelope opens, and the thief has nothing to answer a challenge with")


class ReplayedAnchor(FromTheLedger):
    """Another prover's commitment and envelope, sent again from an account of one's own.

    The forger holds nothing but what everybody can read on the ledger. Without an outer signature over run and account
    the ledger alone could not tell whose the model is; the copy comes later, but who sees the transaction before it is
    in a block can come first.
    """

    name = "replayed-anchor"
    title = "sends another prover's anchor again, from an account of its own"

    def attack(self, arena: Arena) -> Attempt:
        thief = arena.party()
        mine = self.registered(arena, thief)
        return self.judged(
            arena, replay(arena.connection.ledger, thief.account_key, mine, arena.victim.anchored)
        )


class StrippedSignature(FromTheLedger):
    """The outer signature is taken off, and the same ciphertexts signed again with one's own key, for one's own run.

    A signature on the outside alone says who sent a ciphertext, and not who knew what is in it.
    """

    name = "stripped-signature"
    title = "strips the outer signature, and signs the ciphertexts as its own"

    def attack(self, arena: Arena) -> Attempt:
        thief, theirs = arena.party(), arena.victim.anchored
        mine = self.registered(arena, thief)
        sealed = open_envelope(theirs).sealed
        return self.judged(arena, anchored_as(arena, thief, mine, theirs.commitment, sealed))


class FrontRun(FromTheLedger):
    """The victim's transaction is seen before it is in a block, and its commitment anchored first, under one's own run.

    The envelope is the forger's own, properly signed and sealed; only that nothing which it could hold opens the
    commitment. The victim's own anchor, which comes later, must not suffer: its verdict is in the notes.
    """

    name = "front-run-commitment"
    title = "anchors a copy of a commitment before its author's transaction is in a block"

    def attack(self, arena: Arena) -> Attempt:
        honest, thief = arena.party("victim"), arena.party()
        folder = arena.new_run(honest, post_hoc=False)
        arena.train(folder)
        pending = next_head(load_run(folder), honest.key).commitment     # as its transaction in the pool shows it
        mine = self.registered(arena, thief)
        anchored = anchored_as(arena, thief, mine, pending, self._sealed(arena, thief, mine))
        put = arena.anchor(honest, folder)
        self.notes["came first"] = anchored.position < put.position
        self.notes["verdict on the victim"] = arena.verdict(honest, folder, put).verdict
        return self.judged(arena, anchored)

    def _sealed(self, arena: Arena, thief: Party, mine: Registered) -> tuple[Sealed, ...]:
        """A statement of the thief's own invention: it does not know what the commitment is to."""
        manifest = arena.prepare(thief, post_hoc=False).manifest
        statement = Statement(
            run=mine.run,
            sequence=1,
            size=manifest.steps + 1,
            root=new_secret(),
            genesis=new_secret(),
            previous=None,
            final=True,
            state=new_secret(),
            environments=((1, new_secret()),),
            recipients=tuple(sorted(key_id(verifier.recipient) for verifier in manifest.verifiers)),
        )
        head = sign_statement(thief.key, statement, new_secret())
        envelope = make_envelope(head, manifest, arena.connection.ledger.identity(), thief.key)
        return decode(envelope, Envelope).sealed


def anchored_as(
    arena: Arena, thief: Party, mine: Registered, commitment: bytes, sealed: tuple[Sealed, ...]
) -> Anchored:
    """Anchor a commitment and ciphertexts from anywhere, with the thief's outer signature, as its run's first head."""
    ledger = arena.connection.ledger
    chain = ledger.identity()
    message = envelope_message(
        commitment=commitment,
        sealed_digest=sealed_digest(sealed),
        run=mine.run,
        sequence=1,
        chain_id=chain.chain_id,
        contract=chain.contract,
        account=thief.account,
    )
    signature = sign(thief.key, "sign/envelope", message)
    envelope = encode(Envelope(prover=thief.public, sealed=sealed, signature=signature))
    return ledger.anchor(thief.account_key, mine.nonce, bytes(24), commitment, envelope)
