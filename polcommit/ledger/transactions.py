"""Signs transactions to the registry on this machine, sends them, and waits for their event.

A transaction is handed to the caller before it is broadcast, and can be broadcast again as the same bytes: a crash
between sending and recording never sends a second one. It does not speed up a transaction whose fee is too low.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from polcommit.errors import ChainUnavailable, StorageError, Superseded, TransactionFailed, WrongChain
from polcommit.ledger.accounts import address_of
from polcommit.ledger.contract import Event, decode_event, explain_revert
from polcommit.ledger.eth import Account, HexBytes, TypedTransaction, keccak
from polcommit.ledger.rpc import Malformed, Rpc, RpcError, data, field, quantity

OnSent = Callable[[bytes, bytes], None]     # transaction hash (32 bytes), signed transaction

POLL = 0.1              # seconds between looks for a receipt
RECEIPT_TIMEOUT = 600   # seconds; a transaction can wait long for its block on a busy chain
UNKNOWN_TIMEOUT = 30    # seconds that a server may not know a transaction that it took
GAS_MARGIN = 1.2        # the estimate is of the present state; another's transaction can come first
DEFAULT_TIP = 10**9     # wei per gas, where the server suggests none


class Sender:
    """Sends to one contract on one chain."""

    def __init__(self, rpc: Rpc, chain_id: int, contract: bytes) -> None:
        self._rpc = rpc
        self._chain_id = chain_id
        self._contract = contract

    def send(self, key: bytes, call: bytes, on_sent: OnSent | None) -> Event:
        """Sign, send, wait, and return the contract's event. Raises as `Registry.register` says."""
        self._require_chain(quantity(self._rpc.call("eth_chainId"), "chain id"))
        sender = "0x" + address_of(key).hex()
        transaction = self._prepare(sender, call)
        signed = Account.sign_transaction(transaction, key)
        raw, identifier = bytes(signed.raw_transaction), bytes(signed.hash)
        if on_sent is not None:
            on_sent(identifier, raw)
        self._broadcast(identifier, raw)
        return self._event(identifier, {"from": sender, **_replayable(transaction)})

    def resume(self, raw: bytes) -> Event:
        """The event of a signed transaction, which is broadcast again unless the chain has it."""
        transaction = _parse(raw)
        self._require_chain(transaction["chainId"])
        self._require_chain(quantity(self._rpc.call("eth_chainId"), "chain id"))
        identifier = keccak(raw)
        sender = Account.recover_transaction(raw)
        if self._receipt(identifier) is None:
            self._require_unused(sender, transaction)
            self._broadcast(identifier, raw)
        return self._event(identifier, {"from": sender, **_replayable(transaction)})

    def _require_unused(self, sender: str, transaction: dict[str, Any]) -> None:
        """Raises Superseded if the account has sent another transaction with this nonce."""
        used = quantity(self._rpc.call("eth_getTransactionCount", sender, "latest"), "transaction count")
        if used > int(transaction["nonce"]):
            raise Superseded(
                f"account {sender} has sent another transaction with nonce {int(transaction['nonce'])}",
                hint="run the same command again: this one can never be mined, and is signed anew",
            )

    def _require_chain(self, found: int) -> None:
        if found != self._chain_id:
            raise WrongChain(
                f"the transaction is for chain {self._chain_id}, found chain {found}",
                hint="give the run's own chain with --rpc",
            )

    def _prepare(self, sender: str, call: bytes) -> dict[str, Any]:
        """An EIP-1559 transaction, priced and with the gas it needs."""
        block = self._rpc.call("eth_getBlockByNumber", "latest", False)
        base = quantity(field(block, "baseFeePerGas", "block"), "base fee")
        tip = self._tip()
        to, text = "0x" + self._contract.hex(), "0x" + call.hex()
        try:
            gas = quantity(self._rpc.call("eth_estimateGas", {"from": sender, "to": to, "data": text}), "gas estimate")
        except RpcError as error:
            raise self._refused(error, sender) from error
        transaction: dict[str, Any] = {
            "type": 2,
            "chainId": self._chain_id,
            "nonce": quantity(self._rpc.call("eth_getTransactionCount", sender, "pending"), "transaction count"),
            "to": bytes.fromhex(to[2:]),
            "value": 0,
            "data": call,
            "gas": int(gas * GAS_MARGIN),
            # Twice the base fee outlasts six full blocks of rises by an eighth; what is not used is not paid.
            "maxFeePerGas": 2 * base + tip,
            "maxPriorityFeePerGas": tip,
        }
        balance = quantity(self._rpc.call("eth_getBalance", sender, "latest"), "balance", below=2**256)
        needed = transaction["gas"] * transaction["maxFeePerGas"]
        if balance < needed:
            raise _cannot_pay(sender, f"has {_ether(balance)}, needs up to {_ether(needed)}")
        return transaction

    def _tip(self) -> int:
        try:
            return quantity(self._rpc.call("eth_maxPriorityFeePerGas"), "priority fee")
        except RpcError:
            return DEFAULT_TIP

    def _broadcast(self, identifier: bytes, raw: bytes) -> None:
        """Send the bytes; that the chain has them already is as good."""
        try:
            answer = self._rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
        except RpcError as error:
            # 'already known' and, where it has been mined, 'nonce too low': what counts is whether the chain has it.
            if self._known(identifier):
                return
            raise self._refused(error, Account.recover_transaction(raw)) from error
        if data(answer, "transaction hash", 32) != identifier:
            raise Malformed("transaction hash", "not the one of the transaction that was sent")

    def _known(self, identifier: bytes) -> bool:
        return self._rpc.call("eth_getTransactionByHash", "0x" + identifier.hex()) is not None

    def _receipt(self, identifier: bytes) -> Any:
        return self._rpc.call("eth_getTransactionReceipt", "0x" + identifier.hex())

    def _event(self, identifier: bytes, call: dict[str, Any]) -> Event:
        receipt = self._wait(identifier)
        if data(field(receipt, "transactionHash", "receipt"), "receipt's transaction", 32) != identifier:
            raise Malformed("receipt", "of another transaction")
        if quantity(field(receipt, "status", "receipt"), "receipt's status") != 1:
            raise self._reverted(identifier, call)
        logs = field(receipt, "logs", "receipt")
        if not isinstance(logs, list):
            raise Malformed("receipt", "logs are not a list")
        events = [event for log in logs if (event := decode_event(log, self._contract)) is not None]
        if len(events) != 1 or events[0].position.transaction != identifier:
            raise Malformed("receipt", f"{len(events)} events of the registry, not the transaction's one")
        return events[0]

    def _wait(self, identifier: bytes) -> Any:
        """The receipt, once there is one."""
        start = known = time.monotonic()
        while (receipt := self._receipt(identifier)) is None:
            now = time.monotonic()
            if self._known(identifier):
                known = now
            elif now - known > UNKNOWN_TIMEOUT:
                raise TransactionFailed(
                    f"the chain dropped transaction 0x{identifier.hex()}", hint="run this again: it is not sent twice"
                )
            if now - start > RECEIPT_TIMEOUT:
                raise ChainUnavailable(
                    f"transaction 0x{identifier.hex()} is in no block after {RECEIPT_TIMEOUT} s",
                    hint="run this again later: it is not sent twice",
                )
            time.sleep(POLL)
        return receipt

    def _reverted(self, identifier: bytes, call: dict[str, Any]) -> TransactionFailed:
        """Why it reverted, found out by calling it again; receipts do not say."""
        try:
            self._rpc.call("eth_call", call, "latest")
            reason = None
        except RpcError as error:
            reason = explain_revert(error.data) or error.text
        return TransactionFailed(
            f"transaction 0x{identifier.hex()} was reverted ({reason or 'no reason given'})", hint=_REVERT_HINT
        )

    def _refused(self, error: RpcError, sender: str) -> TransactionFailed:
        """What a refusal by the server means, and what to do."""
        reason = explain_revert(error.data)
        if reason is not None:
            return TransactionFailed(f"the registry refused the transaction ({reason})", hint=_REVERT_HINT)
        text = error.text.lower()
        if "insufficient funds" in text or "insufficient balance" in text:
            return _cannot_pay(sender, error.text)
        if "nonce" in text or "underpriced" in text:
            return TransactionFailed(
                f"another transaction of account {sender.lower()} came first ({error.text})",
                hint="see that no other command uses this account just now, then run it again",
            )
        return TransactionFailed(f"the chain refused the transaction ({error.text or 'no reason given'})")


_REVERT_HINT = "see what the chain has with 'polcommit status'; nothing was changed"


def _cannot_pay(sender: str, why: str) -> TransactionFailed:
    return TransactionFailed(
        f"account {sender.lower()} cannot pay for the transaction ({why})",
        hint="send it ether, or give another account with --account",
    )


def _ether(wei: int) -> str:
    return f"{wei / 10**18:.6f} ether"


def _parse(raw: bytes) -> dict[str, Any]:
    """The fields of a signed EIP-1559 transaction."""
    try:
        if raw[:1] != b"\x02":
            raise ValueError("not of type 2")
        fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        Account.recover_transaction(raw)
        return dict(fields)
    except Exception as error: # rlp, eth_keys and eth_account raise many kinds for damaged bytes
        raise StorageError(
            f"the stored transaction is damaged ({type(error).__name__})",
            hint="see with 'polcommit status' whether the chain has it, before it is removed and sent anew",
        ) from error


def _replayable(transaction: dict[str, Any]) -> dict[str, Any]:
    return {"to": "0x" + bytes(transaction["to"]).hex(), "data": "0x" + bytes(transaction["data"]).hex()}
