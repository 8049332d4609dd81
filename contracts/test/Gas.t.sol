// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {PolRegistry} from "../src/PolRegistry.sol";

/// @dev What a transaction costs its sender: 21,000, plus calldata at 4 and 16 gas a byte (EIP-2028), plus execution on
///      cold storage. Every byte of digests and envelopes counts as non-zero, which is the dear case.
///      EIP-7623's floor (10 gas per token) stays below these sums.
contract GasTest is Base {
    uint256 private constant ENVELOPE = 515;

    address private constant NEWCOMER = address(0xA11CE);
    address private constant OLD_HAND = address(0xB0B);

    PolRegistry private registry;
    bytes32 private fresh;
    bytes32 private anchored;
    bytes24 private chained;

    /// @dev A test is one transaction, in which a second access to a slot is cheap: so what comes before a 'later' happens
    ///      here, and each test measures one call.
    function setUp() public {
        registry = new PolRegistry();
        vm.prank(OLD_HAND);
        anchored = registry.register(digest(1));
        vm.prank(OLD_HAND);
        fresh = registry.register(digest(1));
        vm.prank(OLD_HAND);
        registry.anchor(0, bytes24(0), digest(2), filled(ENVELOPE));
        vm.prank(OLD_HAND);
        registry.anchor(1, bytes24(0), digest(2), filled(ENVELOPE));
        registry.challenge(anchored, digest(3), digest(4), digest(5), digest(6), [digest(7), digest(8)]);
        vm.prank(OLD_HAND);
        registry.register(digest(1));
        (, chained) = registry.head(anchored);
    }

    function test_gas_register_first() public {
        bytes memory data = abi.encodeCall(registry.register, (digest(1)));
        assertAtMost(send(NEWCOMER, "register, first of an account", data), 75_000, "register");
    }

    function test_gas_register_later() public {
        bytes memory data = abi.encodeCall(registry.register, (digest(1)));
        assertAtMost(send(OLD_HAND, "register, later", data), 60_000, "register later");
    }

    function test_gas_anchor_first() public {
        bytes memory data = abi.encodeCall(registry.anchor, (2, bytes24(0), digest(2), filled(ENVELOPE)));
        assertAtMost(send(OLD_HAND, "anchor, first of a run, 515-byte envelope", data), 66_000, "anchor");
    }

    function test_gas_anchor_later() public {
        bytes memory data = abi.encodeCall(registry.anchor, (0, chained, digest(3), filled(ENVELOPE)));
        assertAtMost(send(OLD_HAND, "anchor, later, 515-byte envelope", data), 50_000, "anchor later");
    }

    function test_gas_challenge_first() public {
        assertAtMost(send(NEWCOMER, "challenge, first of a run", challengeOf(fresh)), 60_000, "challenge");
    }

    function test_gas_challenge_later() public {
        assertAtMost(send(NEWCOMER, "challenge, later", challengeOf(anchored)), 45_000, "challenge later");
    }

    function challengeOf(bytes32 run) private view returns (bytes memory) {
        return abi.encodeCall(
            registry.challenge, (run, digest(3), digest(4), digest(5), digest(6), [digest(7), digest(8)])
        );
    }

    function send(address sender, string memory what, bytes memory data) private returns (uint256 gas) {
        address target = address(registry);
        vm.cool(target);
        vm.prank(sender);
        uint256 before = gasleft();
        (bool done,) = target.call(data);
        gas = before - gasleft();
        require(done, what);
        // The callee is warm in a real transaction, and this call paid 2,600 (cold) to reach it.
        gas = gas - 2_600 + 21_000;
        for (uint256 i = 0; i < data.length; i++) gas += data[i] == 0 ? 4 : 16;
        emit log_named_uint(what, gas);
    }

    function digest(uint256 seed) private pure returns (bytes32) {
        return keccak256(abi.encode(seed));
    }

    function filled(uint256 length) private pure returns (bytes memory data) {
        data = new bytes(length);
        for (uint256 i = 0; i < length; i++) data[i] = 0xff;
    }
}
