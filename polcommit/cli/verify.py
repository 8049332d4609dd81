"""polcommit verify: the third party's side."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from polcommit.cli import common
from polcommit.cli.challenge import STATUS
from polcommit.cli.present import verdict_json, verdict_text
from polcommit.errors import Refuted, Unavailable

if TYPE_CHECKING:
    from polcommit.comparisons import ReleasedModel
    from polcommit.evidence import Judgement, Replay
    from polcommit.policy import Policy
    from polcommit.records import Challenge, Evidence, Verdict
    from polcommit.session.answer import Options
    from polcommit.session.bundle import Bundle
    from polcommit.session.connection import Connection
    from polcommit.session.environments import EnvironmentSettings


@click.command()
@click.argument("evidence", type=common.FILE)
@click.option("--replay", is_flag=True, help="Re-execute the steps, where the bundle holds states and samples.")
@click.option("--model", type=common.FILE, help="The released model: is it the one that the verdict is about?")
@common.replay_options
@common.chain_options
@common.json_option
def verify(
    evidence: Path,
    replay: bool,
    model: Path | None,
    threads: int | None,
    device: str | None,
    settings: EnvironmentSettings,
    recipes: tuple[str, ...],
    policy: Path | None,
    rpc: str | None,
    contract: str | None,
    as_json: bool,
) -> int:
    """Check an EVIDENCE bundle against your own policy, without any keys.

    V1 to V7 are checked on the policy's chain. V8 to V10 are taken on the word of a verifier that the policy
    trusts, or re-executed with --replay. Exit status: 0 accepted, 1 rejected, 2 usage, 3 could not be checked.
    """
    from polcommit.evidence import judge
    from polcommit.session import bundle, noise
    from polcommit.session.answer import Options
    from polcommit.session.released import read_model

    try:
        found = bundle.read(evidence)
    except Refuted as error:
        return _unreadable(error, as_json)
    chain = common.connection(policy, rpc, contract)
    released = read_model(model) if model is not None else None
    options = Options(released, threads, device, recipes, settings=settings, profiles=noise.known(chain.policy))
    again = _replayer(found, chain, options) if replay else None
    judgement = judge(found.evidence, chain.policy, chain.ledger, again)
    if found.evidence.openings is not None and again is None:
        judgement = _with_contents(found, judgement)
    if released is not None and again is None and judgement.verdict == "accepted":
        _require_model(released, judgement.claimed)
    _show(judgement, chain.policy, as_json)
    return STATUS[judgement.verdict]


def _unreadable(error: Refuted, as_json: bool) -> int:
    finding = {"step": error.check, "what": error.what, "at": None, "expected": error.expected, "found": error.found}
    text = f"REJECTED\n\n  {error.message}"
    common.show({"verdict": "rejected", "basis": "none", "findings": [finding]}, as_json, text)
    return STATUS["rejected"]


def _with_contents(found: Bundle, judgement: Judgement) -> Judgement:
    """A bundle with openings is one thing: their contents are compared with their digests even without a replay."""
    from polcommit.evidence import Judgement
    from polcommit.records import Finding

    with tempfile.TemporaryDirectory(prefix="polcommit-") as work:
        try:
            found.extract(Path(work))
        except Refuted as error:
            finding = Finding(
                check=error.check, what=error.what, step=None, expected=error.expected, found=error.found
            )
            return Judgement("rejected", (finding,), judgement.checks, judgement.claimed)
    return judgement


def _replayer(found: Bundle, chain: Connection, options: Options) -> Replay:
    from polcommit.cli.register import require_torch

    require_torch("re-executing steps")

    def replay(challenge: Challenge, evidence: Evidence) -> Verdict:
        from polcommit.encoding import encode
        from polcommit.session.processes import ProcessReplayer
        from polcommit.verifier import Verification

        assert evidence.disclosure is not None and evidence.openings is not None
        own = Verification(
            policy=chain.policy,
            ledger=chain.ledger,
            replayer=ProcessReplayer(options.threads, options.device, options.recipes, options.settings),
            challenge=challenge,
            attested=evidence.disclosure.heads[-1],
            model=options.model,
            profiles=options.profiles,
        )
        with tempfile.TemporaryDirectory(prefix="polcommit-") as work, common.progress("re-executing") as bar:
            if own.take_disclosure(encode(evidence.disclosure)) and own.take_openings(encode(evidence.openings)):
                try:
                    found.extract(Path(work))
                except Refuted as error:
                    own.reject(error)
                else:
                    own.take_blobs(Path(work), bar)
        return own.verdict(evidence.receipt.verdict.verifier)

    return replay


def _require_model(released: ReleasedModel, claimed: Verdict) -> None:
    """On the verifier's word: it must have compared the very file. Raises Unavailable."""
    if claimed.model is None:
        raise Unavailable(
            "the verifier compared no released model", hint="ask for a challenge made with --model, or check without it"
        )
    if claimed.model != released.digest:
        raise Unavailable(
            "the released model is another file than the one that the verifier compared",
            hint="the same weights saved differently are another file: give the very file that was released",
        )


def _show(judgement: Judgement, policy: Policy, as_json: bool) -> None:
    shown = replace(
        judgement.claimed,
        verdict=judgement.verdict,
        basis=judgement.basis,
        findings=judgement.findings,
        checks=judgement.checks,
        devnet=judgement.claimed.devnet or policy.devnet,       # the reader's own policy knows as well
    )
    result = {**verdict_json(shown), "claimed": judgement.claimed.verdict}
    common.show(result, as_json, verdict_text(shown))
