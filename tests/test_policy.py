"""polcommit.policy: a good file, each bad entry by its name, and the chain that it means."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import MemoryLedger, named, policy_for

from polcommit.errors import Refuted, UsageError, WrongChain
from polcommit.policy import Policy, parse

GENESIS, CONTRACT, CODE, TRUSTED = named("genesis"), named("contract")[:20], named("code"), named("trusted")
MINIMAL = f"""
[chain]
id = 31337
genesis = "0x{GENESIS.hex()}"
contract = "0x{CONTRACT.hex()}"
code = ["{CODE.hex()}"]
"""
FULL = (
    MINIMAL
    + f"""
rpc = "http://127.0.0.1:8545"
confirmations = 12
finality = "finalized"
from_block = 7
devnet = true

[verifiers]
trusted = ["0x{TRUSTED.hex()}"]

[demand]
registered = false
fraction = 0.1
probability = 0.99
"""
)


def test_a_full_file() -> None:
    assert parse(FULL) == Policy(
        chain_id=31337,
        genesis=GENESIS,
        contract=CONTRACT,
        codes=frozenset({CODE}),
        rpc="http://127.0.0.1:8545",
        confirmations=12,
        finality="finalized",
        from_block=7,
        devnet=True,
        trusted=frozenset({TRUSTED}),
        registered=False,
        fraction=0.1,
        probability=0.99,
    )


def test_what_a_short_file_means() -> None:
    """Nobody is trusted, and only runs registered before training are accepted, unless the file says otherwise."""
    policy = parse(MINIMAL)
    assert policy.trusted == frozenset() and policy.registered and not policy.devnet and policy.rpc is None
    assert (policy.confirmations, policy.finality, policy.fraction, policy.probability) == (1, "confirmations", 0.05, 0)


def test_whole_numbers_pass_for_shares() -> None:
    assert parse(MINIMAL + "[demand]\nfraction = 1\nprobability = 0\n").fraction == 1.0


def with_chain(entry: str) -> str:
    """The minimal file with one entry of [chain] replaced, or added."""
    name = entry.split(" ")[0]
    kept = [line for line in MINIMAL.splitlines() if not line.startswith(f"{name} =")]
    return "\n".join([*kept, entry])


@pytest.mark.parametrize(
    ("entry", "named_in_the_error"),
    [
        ('id = "31337"', r"policy \[chain\]: 'id' is '31337', not of type int"),
        ("id = true", r"'id' is True"),
        ("id = 0", "id and confirmations are at least 1"),
        (f"id = {1 << 63}", "id and confirmations are at least 1"),
        ('genesis = "0x1234"', r"'genesis' is '0x1234', not 32 bytes in hexadecimal"),
        ("genesis = 7", "'genesis' is 7"),
        (f'genesis = "{"zz" * 32}"', "'genesis'"),
        (f'contract = "{"00" * 32}"', r"'contract' .* not 20 bytes"),
        ('code = "0x12"', "'code' is '0x12', not of type list"),
        ('code = ["0x12"]', "'code' is '0x12', not 32 bytes"),
        ("code = [12]", "'code' is 12, not 32 bytes"),
        ("rpc = 8545", "'rpc' is 8545"),
        ('confirmations = "3"', "'confirmations' is '3'"),
        ("confirmations = 0", "confirmations are at least 1"),
        ("confirmations = 1.5", "'confirmations' is 1.5"),
        ('finality = "soon"', "finality 'soon'"),
        ("from_block = -1", "from_block at least 0"),
        ('devnet = "yes"', "'devnet' is 'yes'"),
        ("trusted = []", r"policy \[chain\]: unknown entry 'trusted'"),
    ],
)
def test_a_bad_entry_of_the_chain_is_named(entry: str, named_in_the_error: str) -> None:
    with pytest.raises(UsageError, match=named_in_the_error):
        parse(with_chain(entry))


@pytest.mark.parametrize("entry", ["id", "genesis", "contract", "code"])
def test_a_missing_entry_is_named(entry: str) -> None:
    text = "\n".join(line for line in MINIMAL.splitlines() if not line.startswith(f"{entry} ="))
    with pytest.raises(UsageError, match=rf"policy \[chain\]: '{entry}' is None"):
        parse(text)


@pytest.mark.parametrize(
    ("section", "named_in_the_error"),
    [
        ('[verifiers]\ntrusted = "all"', r"\[verifiers\]: 'trusted' is 'all'"),
        ('[verifiers]\ntrusted = ["all"]', "'trusted' is 'all', not 32 bytes"),
        ("[verifiers]\nkeys = []", r"\[verifiers\]: unknown entry 'keys'"),
        ("[demand]\nregistered = 1", "'registered' is 1"),
        ("[demand]\nfraction = 0", "fraction is above 0"),
        ("[demand]\nfraction = 1.5", "fraction is above 0"),
        ("[demand]\nfraction = nan", "fraction is above 0"),
        ('[demand]\nfraction = "5 %"', "'fraction' is '5 %', not a number"),
        ("[demand]\nfraction = true", "'fraction' is True, not a number"),
        ("[demand]\nprobability = 1", "probability below 1"),
        ("[demand]\nprobability = -0.1", "probability below 1"),
        ("[demand]\nprobability = nan", "probability below 1"),
        ("[demand]\nprobabilty = 0.99", r"\[demand\]: unknown entry 'probabilty'"),
        ("[finality]\nblocks = 3", r"unknown section \[finality\]"),
    ],
)
def test_a_bad_entry_elsewhere_is_named(section: str, named_in_the_error: str) -> None:
    with pytest.raises(UsageError, match=named_in_the_error):
        parse(MINIMAL + section + "\n")


@pytest.mark.parametrize("text", ["chain = 3", "top = 1\n" + MINIMAL])
def test_entries_outside_a_section(text: str) -> None:
    with pytest.raises(UsageError, match="unknown section"):
        parse(text)


def test_what_is_not_toml() -> None:
    with pytest.raises(UsageError, match=r"mine\.toml is not TOML"):
        parse("[chain", name="mine.toml")


# --- the chain ------------------------------------------------------------------------------------------------

OTHERS = [
    ("chain_id", 1, "chain id"),
    ("genesis", bytes(32), "genesis"),
    ("contract", bytes(20), "contract"),
    ("code", bytes(32), "code"),
]


def test_the_policys_own_chain() -> None:
    ledger = MemoryLedger()
    policy_for(ledger).require_chain(ledger.identity())


@pytest.mark.parametrize(("name", "value", "said"), OTHERS)
def test_v2_an_rpc_server_of_another_chain_is_no_answer(name: str, value: object, said: str) -> None:
    """The reader's own connection is wrong: nothing was found out about the run."""
    ledger = MemoryLedger()
    with pytest.raises(WrongChain, match=said) as error:
        policy_for(ledger).require_chain(replace(ledger.identity(), **{name: value}))
    assert error.value.exit_status == 3 and error.value.hint


@pytest.mark.parametrize(("name", "value", "said"), OTHERS)
def test_v2_a_bundle_about_another_chain_is_refuted(name: str, value: object, said: str) -> None:
    chain = MemoryLedger().identity()
    claimed = {"chain_id": chain.chain_id, "genesis": chain.genesis, "contract": chain.contract, "code": chain.code}
    policy = policy_for(MemoryLedger())
    policy.require_claimed_chain(**claimed)
    with pytest.raises(Refuted, match="V2"):
        policy.require_claimed_chain(**claimed | {name: value})


def test_one_of_several_codes_will_do() -> None:
    ledger = MemoryLedger()
    policy_for(ledger, codes=frozenset({bytes(32), ledger.chain.code})).require_chain(ledger.identity())
