"""A local chain in the background: anvil, with its state dumped, fsynced and renamed by ourselves.

What is in a dump survives anything: chain id, blocks with their hashes, receipts, logs, code, balances. Blocks after
the last dump are lost when anvil is killed, and are mined anew with other hashes: so `checkpoint` runs before a
command reports anything (it is what `Registry.connect(on_durable=...)` takes). A restored chain has no historical
state: nothing may be called at old blocks. Its time, order and randomness are the operator's own.

Needs no web3: everything goes over plain JSON-RPC.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from polcommit.errors import ChainUnavailable, StorageError, Unavailable, WrongChain
from polcommit.ledger import anvil
from polcommit.ledger.artifacts import registry_artifact
from polcommit.ledger.dumps import read_dump, storage, unzip, write_durably
from polcommit.ledger.rpc import Rpc, data, field, quantity

CHAIN_ID = 31337
START_TIMEOUT = 60          # seconds; a dump of a day's blocks takes some to load
DYING = 3                   # seconds that a killed process may take to be gone
MAX_DUMP = 4 * 2**30        # bytes of hex in the answer of anvil_dumpState
# anvil's first account, of a mnemonic that everybody knows, and the address of the first contract that it deploys.
DEPLOYER = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"
CONTRACT = bytes.fromhex("5fbdb2315678afecb367f032d93f642f64180aa3")


@dataclass(frozen=True, slots=True, kw_only=True)
class DevnetInfo:
    """A running devnet."""

    rpc: str
    port: int
    pid: int
    chain_id: int
    genesis: bytes          # 32 bytes: hash of block 0
    contract: bytes         # 20 bytes
    code: bytes             # 32 bytes: keccak-256 of the contract's code
    latest: int             # number of the latest block
    policy: Path            # the policy file that pins all this
    already_running: bool   # `start` found it running


class Devnet:
    """The devnet of one folder, which holds its dump, log, process record and policy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = folder / "policy.toml"
        self._record = folder / "devnet.json"
        self._dump = folder / "state.json.gz"
        self._log = folder / "anvil.log"

    def start(self, port: int = 8545, block_time: float = 1) -> DevnetInfo:
        """Start it on a port of this machine, mining every `block_time` seconds; a running one is left as it is.

        Restores the last dump, deploys the registry where it is not there yet, and writes `policy.toml`.

        Raises:
            Unavailable: the port is taken, anvil is missing, or it does not come up.
            StorageError: the dump is damaged (it is left as it is), or the disk is full.
            WrongChain: the dump holds a registry of other code.
        """
        if not 0 < port < 65536 or not 0.1 <= block_time <= 3600:
            raise Unavailable(f"port {port} or block time {block_time} is out of range")
        with storage(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked("start.lock"):
            running = self._running()
            if running is not None and running[2]:
                return self._info(*running, already_running=True)
            if running is not None:     # a start that was killed half-way
                running[0].stop()
            anvil.require_free(port)
            process = self._spawn(port, block_time)
            try:
                return self._set_up(process, port)
            except BaseException:
                process.stop()
                self._record.unlink(missing_ok=True)
                raise

    def stop(self) -> bool:
        """Dump the state and end the process; False where none was running."""
        with self._locked("start.lock"):
            running = self._running()
            if running is None:
                return False
            try:
                self.checkpoint()
            finally:
                running[0].stop()
                self._record.unlink(missing_ok=True)
            return True

    def status(self) -> DevnetInfo | None:
        """What is running; None where nothing is."""
        running = self._running()
        if running is None or not running[2]:
            return None
        try:
            return self._info(*running, already_running=True)
        except ChainUnavailable:
            # A process that was killed closes its port before it is gone.
            deadline = time.monotonic() + DYING
            while running[0].alive:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            return None

    def checkpoint(self) -> None:
        """Make durable what the chain has now. Concurrent calls queue, so that an older dump never replaces a newer.

        Raises:
            ChainUnavailable: the devnet is not running, or another chain answers on its port.
            StorageError: the dump could not be written; the one before is untouched.
        """
        with self._locked("state.lock"):
            running = self._running()
            if running is None:
                raise ChainUnavailable("the devnet is not running", hint="start it with 'polcommit devnet start'")
            _, port, genesis = running
            rpc = _rpc(port)
            if genesis and _genesis(rpc) != genesis:
                raise ChainUnavailable(f"the chain on port {port} is not the devnet of {self.folder}")
            dump = data(rpc.call("anvil_dumpState", limit=MAX_DUMP), "state dump")
            unzip(dump, "the state dump that anvil sent")
            write_durably(self._dump, dump)

    def fund(self, address: bytes, wei: int = 100 * 10**18) -> None:
        """Set an account's balance, durably. Raises as `checkpoint`."""
        self._connected().call("anvil_setBalance", "0x" + address.hex(), hex(wei))
        self.checkpoint()

    def account_needs_funds(self, address: bytes, least: int = 10**18) -> bool:
        """Whether the account has less than `least` wei."""
        balance = self._connected().call("eth_getBalance", "0x" + address.hex(), "latest")
        return quantity(balance, "balance", below=2**256) < least

    # Starting

    def _spawn(self, port: int, block_time: float) -> anvil.Process:
        command = [*anvil.find_anvil(self.folder), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--chain-id", str(CHAIN_ID), "--block-time", str(block_time), "--quiet"]
        # anvil would keep the states of old blocks in its home folder; a restored chain has none to offer anyway.
        command += ["--prune-history"]
        best = self._unpack()
        if best is not None:
            command += ["--load-state", str(self._unpacked)]
        process = anvil.spawn(command, self._log)
        try:
            # At once, so that a start that is killed from here on leaves no process that nobody knows.
            self._write_record(process, port, b"")
            self._await(process, port, best or 0)
        except BaseException:
            process.stop()
            self._record.unlink(missing_ok=True)
            raise
        finally:
            self._unpacked.unlink(missing_ok=True)
        return process

    @property
    def _unpacked(self) -> Path:
        """anvil loads plain JSON; this file exists while it starts."""
        return self.folder / "state.loading.json"

    def _unpack(self) -> int | None:
        """Unpack the dump for anvil; the number of its latest block, None where there is no dump."""
        with storage(self._dump):
            try:
                packed = self._dump.read_bytes()
            except FileNotFoundError:
                return None
            text, best = read_dump(packed, f"the devnet's dump {self._dump}")
            self._unpacked.write_bytes(text)
        return best

    def _await(self, process: anvil.Process, port: int, least: int) -> None:
        """Until it answers, with at least `least` blocks."""
        rpc = _rpc(port)
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if not process.alive:
                raise Unavailable(f"anvil ended at once ({self._last_words()})", hint=f"see {self._log}")
            try:
                if quantity(rpc.call("eth_blockNumber"), "block number") >= least:
                    return
            except ChainUnavailable:
                pass
            time.sleep(0.05)
        raise ChainUnavailable(f"anvil does not answer on port {port} after {START_TIMEOUT} s", hint=f"see {self._log}")

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:200] if lines else "it said nothing"

    def _set_up(self, process: anvil.Process, port: int) -> DevnetInfo:
        rpc = _rpc(port)
        _deploy(rpc)
        self._write_record(process, port, _genesis(rpc))
        self.checkpoint()
        info = self._info(process, port, _genesis(rpc), already_running=False)
        write_durably(self.policy, _policy_text(info).encode())
        return info

    # Knowing what runs

    def _write_record(self, process: anvil.Process, port: int, genesis: bytes) -> None:
        record = {"pid": process.pid, "start": process.start, "port": port, "genesis": genesis.hex()}
        write_durably(self._record, json.dumps(record).encode())

    def _running(self) -> tuple[anvil.Process, int, bytes] | None:
        """Process, port and genesis hash of what was started here and lives.

        The genesis hash is empty until it is set up. A stale or damaged record counts as none.
        """
        try:
            record = json.loads(self._record.read_bytes())
            process = anvil.Process(int(record["pid"]), str(record["start"]))
            found = process, int(record["port"]), bytes.fromhex(record["genesis"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {self._record} ({error.strerror})") from error
        except (ValueError, KeyError, TypeError):
            return None
        return found if process.alive else None

    def _connected(self) -> Rpc:
        running = self._running()
        if running is None:
            raise ChainUnavailable("the devnet is not running", hint="start it with 'polcommit devnet start'")
        return _rpc(running[1])

    def _info(self, process: anvil.Process, port: int, genesis: bytes, *, already_running: bool) -> DevnetInfo:
        rpc = _rpc(port)
        found = _genesis(rpc)
        if found != genesis:
            raise WrongChain(f"the chain on port {port} is not the devnet of {self.folder}")
        return DevnetInfo(
            rpc=rpc.url,
            port=port,
            pid=process.pid,
            chain_id=quantity(rpc.call("eth_chainId"), "chain id"),
            genesis=genesis,
            contract=CONTRACT,
            code=registry_artifact().code_hash,
            latest=quantity(rpc.call("eth_blockNumber"), "block number"),
            policy=self.policy,
            already_running=already_running,
        )

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One process at a time; the kernel lets go when the holder dies."""
        with storage(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _rpc(port: int) -> Rpc:
    return Rpc(f"http://127.0.0.1:{port}", timeout=60)


def _genesis(rpc: Rpc) -> bytes:
    return data(field(rpc.call("eth_getBlockByNumber", "0x0", False), "hash", "block"), "block hash", 32)


def _deploy(rpc: Rpc) -> None:
    """Deploy the registry, unless it is there."""
    artifact = registry_artifact()
    where = "0x" + CONTRACT.hex()
    if not data(rpc.call("eth_getCode", where, "latest"), "code"):
        transaction = {"from": DEPLOYER, "data": "0x" + artifact.bytecode.hex(), "gas": hex(3_000_000)}
        identifier = rpc.call("eth_sendTransaction", transaction)
        rpc.call("evm_mine")
        receipt = rpc.call("eth_getTransactionReceipt", identifier)
        if data(field(receipt, "contractAddress", "receipt"), "contract's address", 20) != CONTRACT:
            raise Unavailable(
                "the devnet's first contract is not the registry", hint="move the devnet's folder away and start anew"
            )
    if data(rpc.call("eth_getCode", where, "latest"), "code") != artifact.deployed:
        raise WrongChain(
            f"the devnet's registry at {where} has other code than this polcommit's",
            hint="it is of another version: use that, or move the devnet's folder away and start anew",
        )


def _policy_text(info: DevnetInfo) -> str:
    return (
        "# Written by 'polcommit devnet start'. Order, time and randomness of this chain are its operator's own.\n"
        "[chain]\n"
        f"id = {info.chain_id}\n"
        f'genesis = "0x{info.genesis.hex()}"\n'
        f'contract = "0x{info.contract.hex()}"\n'
        f'code = ["0x{info.code.hex()}"]\n'
        f'rpc = "{info.rpc}"\n'
        "confirmations = 1\n"
        "devnet = true\n"
    )
