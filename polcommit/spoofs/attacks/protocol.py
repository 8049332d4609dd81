"""Spoofs that have a say in what is drawn, in what is on the ledger, or in who looks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import islice

from polcommit import transcript as hashes
from polcommit.encoding import digest
from polcommit.envelopes import make_envelope
from polcommit.errors import TransactionFailed, Unavailable
from polcommit.events import Anchored
from polcommit.evidence import judge
from polcommit.policy import Policy
from polcommit.prover import Run, next_head
from polcommit.records import Challenge, Evidence, RevealedHead, Verdict
from polcommit.sampling import draw
from polcommit.sealing import new_secret
from polcommit.session import bundle
from polcommit.session import challenge as challenging
from polcommit.session.challenge import Ask, Verifier
from polcommit.session.pending import Challenges
from polcommit.session.run import load_run, require_registration, seed_of
from polcommit.signing import sign_verdict
from polcommit.spoofs.attacks.splices import Spliced, lead, spliced
from polcommit.spoofs.base import PreconditionNotMet, ProtocolSpoof, Stage
from polcommit.spoofs.checkpoint import flat, members, relative_distance
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.forging import Forger
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt, best
from polcommit.spoofs.opponent.setting import Announced, Party
from polcommit.storage.journal import Journal
from polcommit.storage.runfolder import RunFolder
from polcommit.training.replay import Engine

DEMANDED = 0.9      # least detection that the reader of a bundle asks for


def read_by(arena: Arena, evidence: Evidence, *trusted: Verifier) -> Attempt:
    """What somebody makes of a bundle who trusts these verifiers, and asks for DEMANDED detection."""
    keys = frozenset(one.public for one in trusted)
    policy: Policy = replace(arena.connection.policy, trusted=keys, probability=DEMANDED)
    claimed = evidence.receipt.verdict
    try:
        found = judge(evidence, policy, arena.connection.ledger)
    except Unavailable as error:
        return replace(Attempt.of(claimed), outcome="inconclusive", why=error.message)
    return Attempt.of(replace(claimed, verdict=found.verdict, findings=found.findings, basis=found.basis))


def signed_off(verdict: Verdict, friend: Verifier) -> Verdict:
    """What a friend signs, whatever came out: everything passed."""
    checks = tuple((check, "not checked" if check == "V13" else "passed") for check, _ in verdict.checks)
    return replace(
        verdict, verdict="accepted", basis="bit-exact", findings=(), checks=checks, flags=(),
        reexecuted=tuple(sorted({*verdict.steps, *verdict.added})), verifier=friend.public,
    )  # fmt: skip


def begun(stage: Stage, steps: int) -> None:
    """Commit so many honest steps, and no more."""
    prover = Forger(stage)
    for batch in islice(stage.batches(), steps):
        prover.commit(batch, prover.step(batch))


class GrindsNonces(ProtocolSpoof):
    """A friendly verifier, whom readers trust, tries nonces off line until the draw meets no forged step.

    The event on the ledger names a nonce before anybody can know the randomness; the one that is ground comes after.
    The friend signs that all is well.
    """

    name = "grinds-nonces"
    family = "protocol"
    title = "has a friendly verifier try nonces until the draw meets no forged step"
    source = "polcommit"
    tries = 200_000

    def attack(self, arena: Arena) -> Attempt:
        friend = arena.new_verifier()
        run = spliced(arena, verifiers=(friend,))
        count = max(1, len(run.honest) // 2)
        announced = arena.announce(run.put, Ask(count=count), friend)
        prover = arena.dishonest(run.party, run.folder)
        prover.drawn(announced.challenge)       # waits until the randomness is known
        with run.meter.timed():
            challenge = self._ground(arena, run, announced)
        drawn = prover.drawn(challenge)
        opening = prover.open(challenge, drawn)
        honest = arena.settle(replace(announced, challenge=challenge), prover.seal(challenge, opening))
        disclosed = bundle.read(announced.evidence).evidence.disclosure
        lied = signed_off(replace(honest.verdict, steps=drawn.steps), friend)
        evidence = Evidence(receipt=sign_verdict(friend.key, lied), disclosure=disclosed, openings=None)
        self.notes["an honest verifier says"] = honest.verdict.verdict
        attempt = read_by(arena, evidence, friend)
        return replace(attempt, cost=run.meter.share(arena.setting.recipe), seconds=run.meter.seconds)

    def _ground(self, arena: Arena, run: Spliced, announced: Announced) -> Challenge:
        """The same challenge with a nonce that is good to the forger."""
        forged = set(run.forged)
        for tried in range(1, self.tries + 1):
            challenge = replace(announced.challenge, nonce=new_secret())
            seed = self._seed(arena, challenge)
            if not forged & set(draw(seed, challenge.request, arena.setting.recipe.steps)):
                self.notes["nonces tried"] = tried
                return challenge
        raise PreconditionNotMet(f"{self.tries} nonces were not enough to avoid {len(forged)} forged steps")

    def _seed(self, arena: Arena, challenge: Challenge) -> bytes:
        """Of the draw with this nonce, at the randomness that is known by now."""
        ledger, request = arena.connection.ledger, challenge.request
        chain = ledger.identity()
        return hashes.draw_seed(
            chain_id=chain.chain_id, contract=chain.contract, run=request.run, commitment=request.commitment,
            challenge_id=challenge.id, request=digest(request), nonce=challenge.nonce,
            prevrandao=ledger.block(challenge.block + hashes.DELAY).prevrandao,
        )  # fmt: skip


class ShopsForVerifiers(ProtocolSpoof):
    """One verifier's draw meets forged steps; the verdict is dropped, and another one lists honest steps only.

    The other verifier's word is true, and readers trust it. It is also asked alone, without anybody before it: what it
    signs then is that it detects nothing, and it is for the reader to ask for more.
    """

    name = "shops-for-verifiers"
    family = "protocol"
    title = "drops a bad verdict, and has another verifier look at honest steps"
    source = "polcommit"

    def attack(self, arena: Arena) -> Attempt:
        friend = arena.new_verifier()
        attempts = []
        for shopped in (True, False):
            run = spliced(arena, verifiers=(friend,))
            if shopped:
                first = arena.announce(run.put)
                prover = arena.dishonest(run.party, run.folder)
                self.notes["first verdict"] = arena.settle(first, prover.answer(first.challenge)).verdict.verdict
            announced = arena.announce(run.put, Ask(strategy="list", count=0, steps=run.honest[:1]), friend)
            answer = arena.dishonest(run.party, run.folder).answer(announced.challenge)
            arena.settle(announced, answer)
            attempt = read_by(arena, bundle.read(announced.evidence).evidence, friend, arena.verifier)
            attempts.append(replace(attempt, cost=run.meter.share(arena.setting.recipe), seconds=run.meter.seconds))
            self.notes["after another" if shopped else "alone"] = f"{attempt.outcome}: {attempt.why}"
        return best(attempts)


class GrindsBeacons(ProtocolSpoof):
    """Registers several runs, and goes on with the one whose W_0 lies nearest to the stolen model.

    A post hoc run has its seed for nothing, and tries more. Verdicts say how many runs the account registered, and how
    many of them it anchored. What is ground is where a run begins: an honest run from the next best one is honest.
    """

    name = "grinds-beacons"
    family = "protocol"
    title = "registers many runs, and forges the one with the best beacon"
    source = "polcommit"
    registrations, seeds = 5, 100

    def attack(self, arena: Arena) -> Attempt:
        party, meter = arena.party(), Meter()
        distances, nearest, second = self._ground(arena, party, meter)
        tries = len(distances)
        self.notes |= {"tries": tries, "nearest": min(distances), "on average": sum(distances) / tries}
        arena.write(nearest, meter, lambda stage: lead(stage, 0))
        verdict = arena.verdict(party, nearest, arena.anchor(party, nearest))
        self.notes["registrations, and anchored ones"] = "{} and {}".format(*verdict.registrations)
        arena.train(second)
        honest = arena.verdict(party, second, arena.anchor(party, second))
        self.notes["an honest run from the next best"] = honest.verdict
        return arena.attempt(verdict, meter)

    def _ground(self, arena: Arena, party: Party, meter: Meter) -> tuple[list[float], RunFolder, RunFolder]:
        """How far each W_0 that was tried is from the stolen model, and the runs that begin at the nearest two."""
        if arena.setting.post_hoc:
            seeds = [new_secret() for _ in range(self.seeds)]
            due = [hashes.post_hoc_seed(seed, party.account, party.public) for seed in seeds]
        else:
            folders = [arena.new_run(party) for _ in range(self.registrations)]
            due = [seed_of(folder) for folder in folders]
        distances = [self._distance(arena, seed, meter) for seed in due]
        first, second = sorted(range(len(due)), key=distances.__getitem__)[:2]
        if arena.setting.post_hoc:
            return distances, arena.new_run(party, seed=seeds[first]), arena.new_run(party, seed=seeds[second])
        return distances, folders[first], folders[second]

    def _distance(self, arena: Arena, seed: bytes, meter: Meter) -> float:
        """Of the W_0 that a seed gives from the stolen model, as a share of its norm."""
        engine = Engine(arena.setting.recipe, seed)
        engine.initial()
        meter.weights()
        return relative_distance(flat(members(engine.state)), flat(arena.target))


class SeveralRoots(ProtocolSpoof):
    """Two transcripts for one run: what is anchored first is not what is shown in the end.

    Half an honest run is anchored, and then a whole one that does not begin with it. The contract takes each head only
    after the one before, so that the first cannot be left out: 'in its place' in the notes is what came of trying.
    """

    name = "several-roots"
    family = "protocol"
    title = "anchors two different histories for one run"
    source = "polcommit"

    def attack(self, arena: Arena) -> Attempt:
        recipe = arena.setting.recipe
        if recipe.steps < 2:
            raise PreconditionNotMet("a run of one step has one head")
        party, meter = arena.party(), Meter()
        folder = arena.new_run(party)
        arena.train(folder, recipe.steps // 2)
        first = arena.anchor(party, folder)
        run = self._other_history(arena, folder, meter)
        head = next_head(run, party.key)
        chain, ledger = arena.connection.ledger.identity(), arena.connection.ledger
        envelope = make_envelope(head, run.manifest, chain, party.key)
        nonce = require_registration(folder).registered.nonce
        try:
            ledger.anchor(party.account_key, nonce, bytes(24), head.commitment, envelope)
        except TransactionFailed as error:
            self.notes["in its place"] = error.message
        _, previous = ledger.head(first.run)
        put = ledger.anchor(party.account_key, nonce, previous, head.commitment, envelope)
        announced = arena.announce(put)
        answer = arena.dishonest(party, folder, run=replace(run, heads=(*run.heads, head))).answer(announced.challenge)
        verdict = arena.settle(announced, answer).verdict
        return arena.attempt(verdict, meter)

    def _other_history(self, arena: Arena, folder: RunFolder, meter: Meter) -> Run:
        """The folder with a transcript of its own instead, from W_0 on a line; and the first head as it is."""
        heads = load_run(folder, arena.setting.recipe.learning_rate).heads
        shutil.rmtree(folder.path / "states")
        shutil.rmtree(folder.path / "environments")
        (folder.path / "journal").unlink()
        Journal.create(folder.path / "journal").close()
        arena.write(folder, meter, lambda stage: lead(stage, 0))
        anchors = folder.path / "anchors"
        anchors.rename(folder.path / "anchors.true")    # else the folder itself is found to be damaged
        anchors.mkdir()
        run = load_run(folder, arena.setting.recipe.learning_rate)
        return replace(run, heads=heads)


class EarlyChallenge(ProtocolSpoof):
    """A friendly verifier challenges a head before it is anchored, so that its draw is known when it is.

    If the draw were bad, another blinding would give another commitment, and another try. The contract takes no
    challenge of a run without a head, and of one that has some, a challenge of any commitment.
    """

    name = "early-challenge"
    family = "protocol"
    title = "has the draw made before the head is anchored"
    source = "polcommit"

    def attack(self, arena: Arena) -> Attempt:
        recipe, party, meter = arena.setting.recipe, arena.party(), Meter()
        if recipe.steps < 4:
            raise PreconditionNotMet(f"{recipe.steps} steps have no early head and a rest")
        early = recipe.steps // 2
        folder = arena.new_run(party)
        arena.write(folder, meter, lambda stage: begun(stage, early), partial=True)
        first = arena.anchor(party, folder)
        arena.write(folder, meter, lambda stage: lead(stage, early), begin=early)
        head = next_head(load_run(folder), party.key)
        announced = self._early(arena, first, head)
        put = arena.anchor(party, folder)
        assert put.commitment == head.commitment, "the challenged head is the anchored one"
        answer = arena.dishonest(party, folder).answer(announced.challenge)
        verdict = arena.settle(announced, answer).verdict
        return arena.attempt(verdict, meter)

    def _early(self, arena: Arena, first: Anchored, head: RevealedHead) -> Announced:
        """The challenge of a head that is not on the ledger, and its draw."""
        verifier = arena.verifier
        coming = replace(first, sequence=2, commitment=head.commitment, envelope=b"")
        folder = Challenges(arena.home / "early").new(first.run)
        challenging.begin(verifier, folder, coming, head, Ask(count=max(1, head.statement.steps // 4)))
        challenge = challenging.send(verifier, folder)
        self.notes["the draw was known before the anchor"] = True
        return Announced(verifier, folder, challenge)
