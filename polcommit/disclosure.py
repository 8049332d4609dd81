"""V2 to V7: what anybody can check of a challenge with a policy, an RPC server and no keys (spec §6).

`PublicChecks` takes a disclosure and goes through the steps in order; each method raises `Refuted` with what
was expected and what was found. A step uses only what the steps before it have established. It is the same
code for the verifier, who then goes on to V8, and for a third party with a finished bundle.

Not established here: that the opened states, samples and updates are what the leaves commit to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from polcommit import merkle
from polcommit import transcript as hashes
from polcommit.draws import Ledger, answers, challenge_event, counted_challenges, outcome, require_final, resolve
from polcommit.encoding import Record, decode, digest
from polcommit.envelopes import open_envelope, require_outer_signature
from polcommit.errors import EncodingError, ProofError, Refuted, SignatureInvalid
from polcommit.established import Established, opened_record
from polcommit.events import Anchored, ChainIdentity, Challenged
from polcommit.keys import key_id
from polcommit.leaves import check_leaves
from polcommit.records import (
    Challenge,
    Disclosure,
    EarlierChallenge,
    GenesisRecord,
    Receipt,
)
from polcommit.signing import verify_receipt, verify_statement

R = TypeVar("R", bound=Record)


class PublicChecks:
    """V2 to V7 over one disclosure. `run()` goes through them; `established` holds what they found."""

    def __init__(self, ledger: Ledger, chain: ChainIdentity, challenge: Challenge, disclosure: Disclosure) -> None:
        self._ledger = ledger
        self._chain = chain
        self._disclosure = disclosure
        self._request = challenge.request
        anchors = ledger.anchors(self._request.run)
        self._anchors = anchors
        self.established = self._start(challenge, disclosure, anchors)

    def _start(self, challenge: Challenge, disclosure: Disclosure, anchors: tuple[Anchored, ...]) -> Established:
        """V2, first part: there is such an anchor, and a registration of its run."""
        anchor = next((event for event in anchors if event.commitment == self._request.commitment), None)
        if anchor is None:
            raise Refuted("V2", "anchor on the ledger", expected=self._request.commitment, found="no such event")
        registration = self._ledger.registration(self._request.run)
        if registration is None:
            raise Refuted("V2", "registration of the run", expected=self._request.run, found="no such event")
        if not disclosure.heads:
            raise Refuted("V1", "revealed heads", expected=anchor.sequence, found=0)
        return Established(
            challenge=challenge,
            anchor=anchor,
            registration=registration,
            manifest=disclosure.manifest,
            statement=disclosure.heads[-1].statement,
        )

    @property
    def steps(self) -> tuple[tuple[str, Callable[[], None]], ...]:
        """The numbered steps, in order."""
        return (
            ("V2", self._v2_account),
            ("V3", self._v3_signatures),
            ("V4", self._v4_history),
            ("V5", self._v5_genesis),
            ("V6", self._v6_draw),
            ("V7", lambda: check_leaves(self.established, self._disclosure)),
        )

    # --- V2 ---------------------------------------------------------------------------------------------------

    def _v2_account(self) -> None:
        """V2: anchored finally, by the account whose run it is: the contract derives the run from its caller."""
        known = self.established
        account, registered = known.manifest.account, known.registration
        if registered.account != account:
            raise Refuted("V2", "account of the run", expected=registered.account, found=account)
        run = hashes.run_id(self._chain.chain_id, self._chain.contract, account, registered.nonce)
        if run != self._request.run:
            raise Refuted("V2", "run id", expected=run, found=self._request.run)
        require_final(self._ledger, known.anchor.position.block, "anchor")

    # --- V3 ---------------------------------------------------------------------------------------------------

    def _v3_signatures(self) -> None:
        """V3: the ciphertexts and the statement are both signed by the prover, for this run, chain and account."""
        known = self.established
        recipients = tuple(sorted(key_id(verifier.recipient) for verifier in known.manifest.verifiers))
        for event, head in zip(self._anchors, self._disclosure.heads, strict=False):
            statement = head.statement
            self._v3_envelope(event, recipients)
            try:
                verify_statement(known.manifest.prover, head)
            except SignatureInvalid as error:
                raise Refuted("V3", "inner signature", expected=known.manifest.prover, found="another key") from error
            if (statement.run, statement.sequence) != (event.run, event.sequence):
                found = f"{statement.run.hex()} head {statement.sequence}"
                raise Refuted("V3", "statement", expected=f"{event.run.hex()} head {event.sequence}", found=found)
            if statement.recipients != recipients:
                found, due = _listed(statement.recipients), _listed(recipients)
                raise Refuted("V3", "recipients of the statement", expected=due, found=found)

    def _v3_envelope(self, event: Anchored, recipients: tuple[bytes, ...]) -> None:
        """The envelope is the prover's, for this place, and sealed to every verifier that the manifest names."""
        prover = self.established.manifest.prover
        envelope = open_envelope(event)
        if envelope.prover != prover:
            raise Refuted("V3", "prover of the envelope", expected=prover, found=envelope.prover)
        due, named = [key[:8] for key in recipients], [sealed.recipient for sealed in envelope.sealed]
        if named != due:
            raise Refuted("V3", "recipients of the envelope", expected=_listed(due), found=_listed(named))
        require_outer_signature(self._chain, event, envelope, self.established.manifest.account)

    # --- V4 ---------------------------------------------------------------------------------------------------

    def _v4_history(self) -> None:
        """V4: every commitment opens to its statement, and each head extends the one before it."""
        heads, sequence = self._disclosure.heads, self.established.anchor.sequence
        if len(heads) != sequence:
            raise Refuted("V4", "revealed heads", expected=sequence, found=len(heads))
        if len(self._disclosure.consistency) != sequence - 1:
            raise Refuted("V4", "consistency proofs", expected=sequence - 1, found=len(self._disclosure.consistency))
        for event, head in zip(self._anchors, heads, strict=False):
            if head.commitment != event.commitment:
                what = f"commitment of head {event.sequence}"
                raise Refuted("V4", what, expected=event.commitment, found=head.commitment)
        for earlier, later, proof in zip(heads, heads[1:], self._disclosure.consistency, strict=False):
            before, after = earlier.statement, later.statement
            if after.previous != before.head:
                raise Refuted("V4", "previous head", expected=before.head, found=after.previous)
            if before.final:
                raise Refuted("V4", "heads after a final one", expected=0, found=sequence - before.sequence)
            if after.environments[: len(before.environments)] != before.environments:
                raise Refuted("V4", "environment epochs", expected="the earlier head's, extended", found="others")
            try:
                merkle.verify_consistency(before.size, after.size, proof, before.root, after.root)
            except ProofError as error:
                raise Refuted("V4", f"head {after.sequence} extends head {before.sequence}", found=error) from error

    # --- V5 ---------------------------------------------------------------------------------------------------

    def _v5_genesis(self) -> None:
        """V5: prover, run, recipe and data set were fixed before the beacon, and the beacon is the chain's."""
        known, manifest = self.established, self._disclosure.manifest
        commitment = hashes.manifest_commitment(self._disclosure.manifest_blinding, manifest)
        if commitment != known.registration.manifest:
            raise Refuted("V5", "manifest commitment", expected=known.registration.manifest, found=commitment)
        self._v5_leaves_are_in_the_tree()
        genesis = self._v5_genesis_record()
        registered = manifest.seed is None
        number, value = self._v5_beacon(commitment) if registered else (None, None)
        expected = GenesisRecord(
            run=self._request.run if registered else None,
            manifest=digest(manifest),
            beacon_block=number,
            beacon=value,
            state=genesis.state,
            chain_id=self._chain.chain_id,
            contract=self._chain.contract,
            account=manifest.account,
            prover=manifest.prover,
        )
        if genesis != expected:
            raise Refuted("V5", "genesis record", expected=digest(expected), found=digest(genesis))
        if any(head.statement.genesis != digest(genesis) for head in self._disclosure.heads):
            raise Refuted("V5", "genesis of the statements", expected=digest(genesis), found="another")
        for head in self._disclosure.heads:
            complete = head.statement.steps == manifest.steps
            if head.statement.final != complete:
                what = f"whether head {head.statement.sequence} is final"
                raise Refuted("V5", what, expected=complete, found=head.statement.final)
        if known.statement.steps > manifest.steps:
            raise Refuted("V5", "number of steps", expected=f"at most {manifest.steps}", found=known.statement.steps)
        if manifest.seed is not None:
            known.seed = hashes.post_hoc_seed(manifest.seed, manifest.account, manifest.prover)
        elif value is not None:
            known.seed = hashes.run_seed(value)
        known.genesis = genesis
        self._v5_parent()

    def _v5_beacon(self, commitment: bytes) -> tuple[int, bytes]:
        """Block and value of the run's beacon, which was out before the challenged head was anchored."""
        known = self.established
        number = known.registration.position.block + hashes.DELAY
        require_final(self._ledger, number, "beacon")
        block = self._ledger.block(number)
        if known.anchor.position.block <= number:
            found = known.anchor.position.block
            raise Refuted("V5", "anchor after the beacon", expected=f"after block {number}", found=found)
        run = self._request.run
        return number, hashes.beacon(self._chain.chain_id, self._chain.contract, run, commitment, block.prevrandao)

    def _v5_parent(self) -> None:
        """The parent that the manifest names is the one that is shown, with a signed verdict on that very head."""
        named, claim = self.established.manifest.parent, self._disclosure.parent
        if named is None or claim is None:
            if (named is None) != (claim is None):
                raise Refuted("V5", "parent run", expected=named and named[0], found=claim and claim.head.statement.run)
            return
        verdict = _receipt(claim.receipt, "V5", "verdict on the parent run").verdict
        statement = claim.head.statement
        pairs = (
            ("run", named[0], statement.run),
            ("head", named[1], statement.head),
            ("run of the verdict", named[0], verdict.run),
            ("head of the verdict", claim.head.commitment, verdict.commitment),
            ("chain", (self._chain.chain_id, self._chain.genesis), (verdict.chain_id, verdict.genesis)),
            ("contract", self._chain.contract, verdict.contract),
        )
        for what, expected, found in pairs:
            if expected != found:
                raise Refuted("V5", f"{what} of the parent", expected=expected, found=found)
        self.established.parent, self.established.parent_state = verdict, statement.state

    def _v5_leaves_are_in_the_tree(self) -> None:
        leaves, statement = self._disclosure.leaves, self.established.statement
        computed = {leaf.index: hashes.salted_leaf("transcript", leaf.salt, leaf.record) for leaf in leaves}
        if list(computed) != sorted(computed) or len(computed) != len(leaves) or 0 not in computed:
            raise Refuted("V5", "opened leaves", expected="rising from 0", found=[leaf.index for leaf in leaves][:20])
        try:
            merkle.verify_batch(computed, statement.size, self._disclosure.leaves_proof, statement.root)
        except ProofError as error:
            what = "opened leaves are in the anchored tree"
            raise Refuted("V5", what, expected=statement.root, found=error) from error

    def _v5_genesis_record(self) -> GenesisRecord:
        return opened_record(self._disclosure.leaves[0], GenesisRecord, "V5")

    # --- V6 ---------------------------------------------------------------------------------------------------

    def _v6_draw(self) -> None:
        """V6: challenged on the ledger after the anchor and before the randomness; the steps are the drawn ones."""
        known = self.established
        event = challenge_event(self._ledger, self._chain, known.manifest, known.anchor, known.challenge)
        statements = tuple(head.statement for head in self._disclosure.heads)
        known.drawn = resolve(self._ledger, self._chain, known.manifest, known.challenge, event, statements)
        self._v6_earlier(event)

    def _v6_earlier(self, event: Challenged) -> None:
        """What became of the earlier challenges, by the receipts that the prover must include."""
        receipts: dict[int, Receipt] = {}
        for raw in self._disclosure.receipts:
            signed = _receipt(raw, "V6", "receipt of an earlier challenge")
            number = signed.verdict.challenge_id
            if number is None or number in receipts:
                raise Refuted("V6", "receipts", expected="one for each earlier challenge", found=number)
            receipts[number] = signed
        earlier, verdicts = [], []
        counted = counted_challenges(self._chain, self.established.manifest, self._ledger.challenges(event.run))
        for other in counted:
            if other.id >= event.id:
                continue
            receipt: Receipt | None = receipts.pop(other.id, None)
            verdict = receipt.verdict if receipt is not None and answers(receipt.verdict, other) else None
            if verdict is not None:
                verdicts.append(verdict)
            earlier.append(EarlierChallenge(id=other.id, verifier=other.verifier, outcome=outcome(verdict)))
        if receipts:
            raise Refuted("V6", "receipts", expected="only of earlier challenges", found=sorted(receipts))
        self.established.earlier, self.established.verdicts = tuple(earlier), tuple(verdicts)


def _listed(keys: Iterable[bytes]) -> str:
    return ", ".join(key.hex() for key in keys)


def _receipt(raw: bytes, check: str, what: str) -> Receipt:
    try:
        receipt = decode(raw, Receipt)
        verify_receipt(receipt)
    except (EncodingError, SignatureInvalid) as error:
        raise Refuted(check, what, expected="a signed verdict", found=error) from error
    return receipt
