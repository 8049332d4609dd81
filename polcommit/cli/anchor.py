"""polcommit anchor: the head of a run, onto the ledger."""

from __future__ import annotations

from pathlib import Path

import click

from polcommit.cli import common


@click.command()
@click.argument("run", type=common.FOLDER)
@common.key_options
@common.chain_options
@common.json_option
def anchor(
    run: Path,
    key: str | None,
    account: Path | None,
    passphrase_file: Path | None,
    policy: Path | None,
    rpc: str | None,
    contract: str | None,
    as_json: bool,
) -> None:
    """Anchor what was recorded in RUN since the last head. Never sends twice for one head.

    A post hoc run is registered by its first anchor.
    """
    from polcommit.session.anchor import anchor as put
    from polcommit.session.anchor import require_steps
    from polcommit.session.run import is_post_hoc
    from polcommit.storage.runfolder import RunFolder

    folder = RunFolder.open(run)
    require_steps(folder)
    first = is_post_hoc(folder) and folder.registration is None
    chain = common.connection(policy, rpc, contract, remembered=folder.settings.rpc)
    unlocked = common.unlock(key or folder.settings.key, "prover", passphrase_file, account)
    chain.fund(folder.manifest.account, common.say)
    with common.progress("waiting for blocks") as bar:
        done = put(folder, chain, unlocked.signing, unlocked.account, bar)
    if first:
        common.say("registered post hoc, by this anchor: no verdict will say that it was registered before training")
    if not done.new:
        common.say("nothing new to anchor: this is where the last head stands")
    statement = done.head.statement
    common.show(
        {
            "run": statement.run.hex(),
            "sequence": statement.sequence,
            "steps": statement.steps,
            "final": statement.final,
            "root": statement.root.hex(),
            "commitment": done.event.commitment.hex(),
            "block": done.event.position.block,
            "transaction": "0x" + done.event.position.transaction.hex(),
            "sent": done.new,
        },
        as_json,
    )
