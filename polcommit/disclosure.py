"""V2 to V7: what anybody can check of a challenge with a policy, an RPC server and no keys (spec §6).

`PublicChecks` takes a disclosure and goes through the steps in order; each method raises `Refuted` with what
was expected and what was found. A step uses only what the steps before it have established. It is the same
code for the verifier, who then goes on to V8, and for a third party with a finished bundle.

Not established here: that the opened states, samples and updates are what the leaves commit to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from polcommit import merkle, prf
from polcommit import transcript as hashes
from polcommit.draws import Drawn, Ledger, answers, challenge_event, counted_challenges, outcome, require_final, resolve
from polcommit.encoding import Record, decode, digest
from polcommit.envelopes import open_envelope, require_outer_signature
from polcommit.errors import EncodingError, ProofError, Refuted, SignatureInvalid
from polcommit.events import Anchored, ChainIdentity, Challenged, Registered
from polcommit.keys import key_id
from polcommit.records import (
    Challenge,
    Disclosure,
    EarlierChallenge,
    GenesisRecord,
    Manifest,
    OpenedLeaf,
    Receipt,
    Statement,
    StepRecord,
    Verdict,
)
from polcommit.signing import verify_receipt, verify_statement

R = TypeVar("R", bound=Record)


@dataclass(slots=True)
class Established:
    """What the steps have established so far; filled in order."""

    challenge: Challenge
    anchor: Anchored
    registration: Registered
    manifest: Manifest
    statement: Statement
    genesis: GenesisRecord | None = None
    seed: bytes = b""                               # of the run
    drawn: Drawn | None = None
    records: dict[int, StepRecord] | None = None    # opened leaves but the genesis
    samples: dict[int, bytes] | None = None         # dataset index -> leaf hash, of the drawn steps
    parent: Verdict | None = None                   # on the run that this one starts from, signed; not yet believed
    parent_state: bytes | None = None               # committed digest of that run's last state
    earlier: tuple[EarlierChallenge, ...] = ()
    verdicts: tuple[Verdict, ...] = ()              # of the earlier challenges that were answered

    def state(self, step: int) -> bytes:
        """The committed digest of the full state after `step`, whose leaf was opened."""
        assert self.genesis is not None and self.records is not None
        return self.genesis.state if step == 0 else self.records[step].state

    @property
    def draw(self) -> Drawn:
        """The draw, once V6 has established it; the steps that the sketches add are the prover's word until V11."""
        assert self.drawn is not None
        return self.drawn

    @property
    def registered(self) -> bool:
        """Whether data, order and W_0 were fixed before the beacon: of this run, and of all that it starts from."""
        return self.manifest.seed is None and (self.parent is None or self.parent.registered)

    def batch(self, step: int) -> tuple[int, ...]:
        """Dataset indices of the samples of a step, in order."""
        return prf.batch_indices(self.seed, step, self.manifest.dataset.size, self.manifest.batch)


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
            ("V7", self._v7_leaves),
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
        chosen = manifest.seed if value is None else value
        assert chosen is not None
        known.genesis, known.seed = genesis, hashes.run_seed(chosen)
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
        return _record(self._disclosure.leaves[0], GenesisRecord, "V5")

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

    # --- V7 ---------------------------------------------------------------------------------------------------

    def _v7_leaves(self) -> None:
        """V7: each opened leaf is the step it says, and its learning rate and samples are what was registered."""
        known = self.established
        size = known.statement.size
        self._v7_added()
        wanted = hashes.opened_leaves(known.draw.challenged, known.draw.kept, size)
        found = [leaf.index for leaf in self._disclosure.leaves]
        if found != wanted:
            raise Refuted("V7", "opened leaves", expected=wanted[:20], found=found[:20])
        known.records = {}
        for leaf in self._disclosure.leaves[1:]:
            record = _record(leaf, StepRecord, "V7")
            if record.step != leaf.index:
                raise Refuted("V7", "step number", at=leaf.index, expected=leaf.index, found=record.step)
            due = environment_epoch(known.statement, record.step)
            if record.environment != due:
                raise Refuted("V7", "environment epoch", at=record.step, expected=due, found=record.environment)
            known.records[record.step] = record
        last = known.records[known.statement.steps]
        if last.state != known.statement.state:
            raise Refuted("V7", "last state", at=last.step, expected=known.statement.state, found=last.state)
        self._v7_environments()
        self._v7_schedule(known.records)
        self._v7_samples(known.records)

    def _v7_added(self) -> None:
        """The added steps are steps of the head, and not drawn ones. Whether they are due is V11's to say."""
        known, added = self.established, self._disclosure.added
        last = known.statement.steps
        if list(added) != sorted({step for step in added if 1 <= step <= last} - set(known.draw.steps)):
            raise Refuted("V7", "added steps", expected=f"rising, from 1 to {last}, not drawn", found=added[:20])
        if not known.draw.steps and not added:
            raise Refuted("V7", "challenged steps", expected="at least one", found=0)
        known.drawn = replace(known.draw, added=added)

    def _v7_environments(self) -> None:
        stated = [fingerprint for _, fingerprint in self.established.statement.environments]
        shown = [digest(fingerprint) for fingerprint in self._disclosure.environments]
        if shown != stated:
            raise Refuted("V7", "environment fingerprints", expected=len(stated), found=len(shown))

    def _v7_schedule(self, records: dict[int, StepRecord]) -> None:
        known, rates = self.established, self._disclosure.learning_rates
        if len(rates) != len(known.draw.challenged):
            raise Refuted("V7", "learning rates", expected=len(known.draw.challenged), found=len(rates))
        leaves = {}
        for step, rate in zip(known.draw.challenged, rates, strict=True):
            leaves[step - 1] = hashes.schedule_leaf(step, rate)
            if pack_float(records[step].learning_rate) != pack_float(rate):
                raise Refuted("V7", "learning rate", at=step, expected=rate, found=records[step].learning_rate)
        schedule = known.manifest.schedule
        try:
            merkle.verify_batch(leaves, schedule.size, self._disclosure.schedule_proof, schedule.root)
        except ProofError as error:
            what = "learning rates are the registered schedule's"
            raise Refuted("V7", what, expected=schedule.root, found=error) from error

    def _v7_samples(self, records: dict[int, StepRecord]) -> None:
        known, dataset = self.established, self._disclosure.manifest.dataset
        indices = sorted({index for step in known.draw.challenged for index in known.batch(step)})
        if len(indices) != len(self._disclosure.sample_hashes):
            raise Refuted("V7", "samples", expected=len(indices), found=len(self._disclosure.sample_hashes))
        known.samples = dict(zip(indices, self._disclosure.sample_hashes, strict=True))
        try:
            merkle.verify_batch(known.samples, dataset.size, self._disclosure.dataset_proof, dataset.root)
        except ProofError as error:
            raise Refuted("V7", "samples are in the registered data set", expected=dataset.root, found=error) from error
        for step in known.draw.challenged:
            due = hashes.samples_digest(known.samples[index] for index in known.batch(step))
            if records[step].samples != due:
                found = records[step].samples
                raise Refuted("V7", "samples that the order demands", at=step, expected=due, found=found)


def environment_epoch(statement: Statement, step: int) -> int:
    """Index of the environment epoch that a step falls in."""
    return sum(1 for first, _ in statement.environments if first <= step) - 1


def pack_float(value: float) -> bytes:
    """The bytes of a float64: compared instead of the value, so that NaN equals itself and 0.0 is not -0.0."""
    return struct.pack(">d", value)


def _listed(keys: Iterable[bytes]) -> str:
    return ", ".join(key.hex() for key in keys)


def _record(leaf: OpenedLeaf, kind: type[R], check: str) -> R:
    try:
        return decode(leaf.record, kind)
    except EncodingError as error:
        raise Refuted(check, "record", at=leaf.index, expected=f"a {kind.__name__}", found=error) from error


def _receipt(raw: bytes, check: str, what: str) -> Receipt:
    try:
        receipt = decode(raw, Receipt)
        verify_receipt(receipt)
    except (EncodingError, SignatureInvalid) as error:
        raise Refuted(check, what, expected="a signed verdict", found=error) from error
    return receipt
