"""polcommit register: fix recipe, data and terms on the ledger before training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polcommit.cli import common
from polcommit.errors import EncodingError, MissingExtra, UsageError
from polcommit.keys import Card, default_home, list_names, load

if TYPE_CHECKING:
    from polcommit.records import Eligible
    from polcommit.session.parents import FoundParent
    from polcommit.storage.types import Registration
    from polcommit.training.recipe import Recipe

ALL_SAMPLES = 1 << 40       # a budget of samples that no run exhausts


def require_torch(purpose: str) -> None:
    """Raises MissingExtra where torch is not installed; else sees to settings that must stand before it starts."""
    import importlib.util
    import os

    from polcommit.session.processes import PATIENT

    os.environ.setdefault(*PATIENT)
    for name in ("torch", "numpy", "safetensors"):
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise MissingExtra("torch", purpose)


@click.command()
@click.argument("run", type=common.FOLDER)
@click.option("--recipe", required=True, metavar="NAME", help="An installed recipe, or 'package.module:Class'.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A hyperparameter; repeatable.")
@click.option("--steps", type=click.IntRange(1), help="Steps to train; default: the recipe's.")
@click.option("--batch", type=click.IntRange(1), help="Samples a step; default: the recipe's.")
@click.option("--data", metavar="PATH", help="Where the recipe's data lies, if it does not bring its own.")
@click.option("--device", default="cpu", show_default=True, help="What to train on, such as 'cuda'.")
@click.option("--keep", default=50, show_default=True, type=click.IntRange(1), help="Steps between kept full states.")
@click.option("--verifier", "verifiers", multiple=True, metavar="CARD", help="Public card, or name of a key here, of a "
              "verifier who may challenge the run; repeatable. Default: all verifiers' keys here.")  # fmt: skip
@click.option("--budget-steps", type=click.IntRange(0), help="Steps that may be opened to each verifier; default: all.")
@click.option("--budget-samples", type=click.IntRange(0), help="Raw samples likewise; default: all.")
@click.option("--post-hoc", is_flag=True, help="Send nothing now: the run chooses its own seed, and is registered by "
              "its first anchor. Verdicts say so.")  # fmt: skip
@click.option("--parent", type=click.Path(path_type=Path), help="Start from the final state of another run: its "
              "folder, or an evidence bundle of it.")  # fmt: skip
@click.option("--parent-state", type=common.FILE, help="The index of that state, for a bundle without states in clear.")
@click.option("--parent-model", type=common.FILE, help="Its parameters and buffers, as safetensors, likewise.")
@click.option("--allow-clear-openings", is_flag=True, help="Permit bundles that hold states and samples in clear.")
@common.key_options
@common.chain_options
@common.json_option
def register(
    run: Path,
    recipe: str,
    settings: tuple[str, ...],
    steps: int | None,
    batch: int | None,
    data: str | None,
    device: str,
    keep: int,
    verifiers: tuple[str, ...],
    budget_steps: int | None,
    budget_samples: int | None,
    post_hoc: bool,
    parent: Path | None,
    parent_state: Path | None,
    parent_model: Path | None,
    allow_clear_openings: bool,
    key: str | None,
    account: Path | None,
    passphrase_file: Path | None,
    policy: Path | None,
    rpc: str | None,
    contract: str | None,
    as_json: bool,
) -> None:
    """Register RUN (a new folder): hash its data set, send the transaction, and wait for the beacon.

    Data, hyperparameters and who may challenge are fixed now; the order of the data and the initial weights
    follow from a block that nobody knows yet. An interrupted registration is finished by the same command.

    With --post-hoc nothing is sent: such a run can be recorded at once, and proves less.
    """
    require_torch("registering a run")
    given = _settings(settings, steps, batch)
    keys = _keys(verifiers)
    from polcommit.ledger.accounts import address_of
    from polcommit.session import recipes
    from polcommit.session import register as registering

    where = str(Path(data).resolve()) if data is not None else None
    made = recipes.make_recipe(recipe, given, data=where, device=device)
    chain = common.connection(policy, rpc, contract)
    unlocked = common.unlock(key, "prover", passphrase_file, account)
    if not post_hoc:
        chain.fund(address_of(unlocked.account), common.say)
    terms = registering.Terms(
        prover=unlocked.card.signing,
        account=address_of(unlocked.account),
        verifiers=_eligible(keys, made, budget_steps, budget_samples),
        keep=keep,
        clear_openings=allow_clear_openings,
        data=where,
        key=unlocked.card.name,
    )
    with common.progress("registering") as bar, tempfile.TemporaryDirectory(prefix="polcommit-") as work:
        found = _parent(parent, Path(work), parent_state, parent_model)
        if post_hoc:
            registering.prepare(run, made, terms, chain, bar, post_hoc=True, parent=found)
            done = None
        else:
            done = registering.register(run, made, terms, chain, unlocked.account, bar, parent=found)
    common.show(_shown(run, done, found), as_json)
    if post_hoc:
        common.say("nothing was sent: the first anchor registers it, and verdicts will say that it was post hoc")
    common.say(f"now record it: 'polcommit record {run}', or polcommit.record({str(run)!r}) in your own loop")


def _keys(verifiers: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
    """(signing key, recipient key) of the verifiers that are named, each once; or of all that have their key here."""
    cards = list(dict.fromkeys(_card(text) for text in verifiers)) or _own_verifiers()
    return [(card.signing, _recipient(card)) for card in cards]


def _eligible(
    keys: list[tuple[bytes, bytes]], recipe: Recipe, steps: int | None, samples: int | None
) -> tuple[Eligible, ...]:
    """The verifiers with their budgets, by default all steps and as many samples as anybody could want."""
    from polcommit.session.register import eligible

    budget = recipe.steps if steps is None else steps
    return eligible(keys, steps=budget, samples=ALL_SAMPLES if samples is None else samples)


def _parent(path: Path | None, work: Path, state: Path | None, model: Path | None) -> FoundParent | None:
    from polcommit.session.parents import find_parent

    if path is None:
        if state is not None or model is not None:
            raise UsageError("--parent-state and --parent-model are for a --parent", hint="give its evidence bundle")
        return None
    if not path.exists():
        raise UsageError(f"no parent at {path}", hint="give the run's folder, or an evidence bundle of it")
    return find_parent(path, work, state=state, model=model)


def _shown(folder: Path, done: Registration | None, parent: FoundParent | None) -> dict[str, Any]:
    result: dict[str, Any] = {"run": None, "folder": str(folder), "post hoc": done is None}
    if parent is not None:
        result["parent"] = parent.named[0].hex()
    if done is None or done.beacon is None:
        return result
    return result | {
        "run": done.registered.run.hex(),
        "block": done.registered.position.block,
        "transaction": "0x" + done.registered.position.transaction.hex(),
        "beacon block": done.beacon_block,
        "beacon": done.beacon.hex(),
    }


def _settings(settings: tuple[str, ...], steps: int | None, batch: int | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in settings:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(f"--set {text!r}", hint="write it as --set NAME=VALUE")
        found[name] = value
    for name, number in (("steps", steps), ("batch", batch)):
        if number is not None:
            found[name] = str(number)
    return found


def _card(text: str) -> Card:
    if text in list_names(default_home()):
        return load(default_home(), text).card
    try:
        return Card.parse(Path(text).read_bytes())
    except OSError as error:
        hint = "give the public.json that the verifier gave you"
        raise UsageError(f"no verifier's card at {text}", hint=hint) from error
    except EncodingError as error:
        raise UsageError(f"{text} is not a card: {error}", hint="give the verifier's public.json") from error


def _recipient(card: Card) -> bytes:
    if card.recipient is None:
        raise UsageError(f"'{card.name}' is a prover's card", hint="give the public.json of a verifier")
    return card.recipient


def _own_verifiers() -> list[Card]:
    cards = [load(default_home(), name).card for name in list_names(default_home())]
    found = [card for card in cards if card.role == "verifier"]
    if not found:
        raise UsageError(
            "no verifier is named", hint="give a verifier's card with --verifier, or make a verifier's key here"
        )
    return found
