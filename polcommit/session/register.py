"""Registration: what is fixed before training, on the ledger before anybody can know the beacon (spec §4.1).

The folder is complete and durable before a transaction is signed, the signed transaction before it is sent; an
interrupted registration is finished by running it again, and never sends a second one.

A post hoc run is prepared in the same way with a seed of its own choice, and registered only right before its first
anchor: its registration says when the run was committed to, and nothing about what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from polcommit import transcript as hashes
from polcommit.errors import Contradiction, UsageError
from polcommit.policy import Policy
from polcommit.records import Eligible, Manifest, SampleLeaf
from polcommit.sealing import new_secret, require_sealable
from polcommit.session.connection import Connection
from polcommit.session.parents import FoundParent, require_continuable
from polcommit.session.recipes import recipe_name, require_same
from polcommit.session.registration import await_beacon, send
from polcommit.session.run import is_post_hoc
from polcommit.storage.runfolder import RunFolder, check_free
from polcommit.storage.settings import Settings
from polcommit.storage.types import Place, Registration
from polcommit.training.environment import fingerprint, require_device, set_determinism
from polcommit.training.loading import dataset_contents
from polcommit.training.recipe import Recipe
from polcommit.transcript import configuration_digest

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a run is registered under, besides its recipe."""

    prover: bytes                       # Ed25519, 32 bytes
    account: bytes                      # 20 bytes
    verifiers: tuple[Eligible, ...]     # eligible to challenge, with their disclosure budgets
    keep: int = 50                      # steps between full states on disk
    clear_openings: bool = False        # whether bundles may hold states and samples in clear
    data: str | None = None             # path of the recipe's data, for this machine only
    key: str | None = None              # name of the prover's key, for this machine only


def prepare(
    folder: Path,
    recipe: Recipe,
    terms: Terms,
    connection: Connection,
    progress: Progress | None = None,
    *,
    post_hoc: bool = False,
    parent: FoundParent | None = None,
) -> RunFolder:
    """Hash the data set, make the run secret, fix the manifest, and write the run's folder. Sends nothing.

    A `post_hoc` run can be recorded at once, and is registered by its first anchor. With a `parent`, the run starts
    from that run's final parameters and buffers, and a fresh optimizer.

    Raises:
        StorageError: the folder holds something already.
        DataChanged: a sample is random.
        UsageError: no verifier is eligible, the data set does not fill a batch, or the recipe's model is not the
            parent's.
    """
    _require_verifiers(terms)
    check_free(folder)
    recipe_name(recipe)             # raises: one that nobody else could name
    require_device(recipe.device)
    set_determinism()
    if parent is not None:
        require_continuable(parent, recipe, connection.ledger.identity())
    secret = new_secret()
    contents = list(dataset_contents(recipe.source(), progress=progress))
    leaves = _sample_leaves(secret, contents)
    if len(leaves) < recipe.batch:
        raise UsageError(f"{len(leaves)} samples do not fill a batch of {recipe.batch}")
    manifest = _manifest(recipe, terms, connection.policy, leaves, post_hoc=post_hoc, parent=parent)
    chain = connection.ledger.identity()
    return RunFolder.create(
        folder,
        manifest=manifest,
        secret=secret,
        settings=_settings(recipe, terms, connection.policy),
        leaves=leaves,
        contents=contents,
        place=Place(chain_id=chain.chain_id, contract=chain.contract) if post_hoc else None,
        parent=(parent.stored, parent.fetch) if parent is not None else None,
    )


def _require_verifiers(terms: Terms) -> None:
    if not terms.verifiers:
        raise UsageError("no verifier is eligible", hint="give the public card of at least one with --verifier")
    for verifier in terms.verifiers:
        require_sealable(verifier.recipient)


def _sample_leaves(secret: bytes, contents: Sequence[tuple[bytes, int]]) -> list[bytes]:
    """The leaf hashes of the data set, each under a salt of its own, from (content, length) of the samples."""
    return [
        hashes.sample_leaf(hashes.sample_salt(secret, index), SampleLeaf(index=index, length=length, content=content))
        for index, (content, length) in enumerate(contents)
    ]


def _manifest(
    recipe: Recipe, terms: Terms, policy: Policy, leaves: list[bytes], *, post_hoc: bool, parent: FoundParent | None
) -> Manifest:
    """What is registered of the run. A post hoc one chooses its seed here."""
    return Manifest(
        recipe=recipe_name(recipe),
        recipe_source=type(recipe).source_digest(),
        configuration=configuration_digest(recipe.configuration()),
        preprocessing=None,
        dataset=hashes.tree_head(leaves),
        schedule=hashes.tree_head(hashes.schedule_hashes(recipe.learning_rate, recipe.steps)),
        steps=recipe.steps,
        batch=recipe.batch,
        accumulation=recipe.accumulation,
        digest_every=1,
        keep=terms.keep,
        generator=1,
        order=1,
        environment=fingerprint(recipe.device),
        prover=terms.prover,
        account=terms.account,
        verifiers=tuple(sorted(terms.verifiers, key=lambda verifier: verifier.key)),
        clear_openings=terms.clear_openings,
        parent=parent.named if parent is not None else None,
        seed=new_secret() if post_hoc else None,
        confirmations=policy.confirmations if policy.finality == "confirmations" else 0,
    )


def _settings(recipe: Recipe, terms: Terms, policy: Policy) -> Settings:
    """What this machine remembers of the run; nobody else is told."""
    return Settings(
        recipe=recipe_name(recipe),
        configuration=recipe.configuration(),
        data=terms.data,
        rpc=policy.rpc,
        contract="0x" + policy.contract.hex(),
        key=terms.key,
        device=recipe.device,
    )


def register(
    folder: Path,
    recipe: Recipe,
    terms: Terms,
    connection: Connection,
    account_key: bytes,
    progress: Progress | None = None,
    *,
    parent: FoundParent | None = None,
) -> Registration:
    """Register a run: prepare its folder, send, wait for the beacon. An interrupted one is finished.

    A `parent` is what `prepare` takes.

    Raises:
        Contradiction: the folder holds an unfinished registration of something else.
    """
    if (folder / "manifest").exists():
        run = RunFolder.open(folder)
        if run.registration is not None:
            check_free(folder)      # raises: a run is never overwritten
        _require_same(run, recipe, terms, parent)
    else:
        run = prepare(folder, recipe, terms, connection, progress, parent=parent)
    return await_beacon(run, connection, send(run, connection, account_key))


def _require_same(run: RunFolder, recipe: Recipe, terms: Terms, parent: FoundParent | None) -> None:
    """Raises Contradiction unless an unfinished registration is of this recipe, under these terms."""
    if is_post_hoc(run):
        check_free(run.path)        # raises: it is complete, and no registration to be finished
    require_same(run, recipe)
    manifest = run.manifest
    pairs: tuple[tuple[str, object, object], ...] = (
        ("the account", "0x" + manifest.account.hex(), "0x" + terms.account.hex()),
        ("the prover's key", manifest.prover.hex(), terms.prover.hex()),
        ("--keep", manifest.keep, terms.keep),
        ("permission for clear openings", manifest.clear_openings, terms.clear_openings),
        ("the list of verifiers and budgets", _briefly(manifest.verifiers), _briefly(terms.verifiers)),
        ("the parent run", _run_named(manifest.parent), _run_named(parent.named if parent is not None else None)),
    )
    for what, registered, given in pairs:
        if registered != given:
            raise Contradiction(what, registered=registered, given=given)


def _run_named(parent: tuple[bytes, bytes] | None) -> str | None:
    return f"{parent[0].hex()} up to head {parent[1].hex()}" if parent is not None else None


def _briefly(verifiers: tuple[Eligible, ...]) -> list[str]:
    return sorted(f"{one.key.hex()[:16]}: {one.steps} steps, {one.samples} samples" for one in verifiers)


def eligible(cards: Sequence[tuple[bytes, bytes]], *, steps: int, samples: int) -> tuple[Eligible, ...]:
    """Entries of the manifest for verifiers given as (signing key, recipient key), all with the same budget."""
    return tuple(Eligible(key=key, recipient=recipient, steps=steps, samples=samples) for key, recipient in cards)
