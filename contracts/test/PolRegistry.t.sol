// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Vm} from "./Base.sol";
import {IPolRegistry} from "../src/IPolRegistry.sol";
import {PolRegistry} from "../src/PolRegistry.sol";

/// @dev Each rule has a unit test with chosen values, which reads as the rule, and a fuzz twin, which holds for all.
contract PolRegistryTest is Base {
    bytes private constant RUN_TAG = "polcommit/v1/run\x00";
    bytes private constant CHAIN_TAG = "polcommit/v1/chain\x00";

    address private constant ALICE = address(0xA11CE);
    address private constant MALLORY = address(0xBAD);

    PolRegistry private registry;

    function setUp() public {
        registry = new PolRegistry();
    }

    // Registrations

    function test_the_first_registration_has_nonce_zero_and_says_so() public {
        check_register(ALICE, keccak256("manifest"));
    }

    function testFuzz_registration(address account, bytes32 manifest) public {
        check_register(account, manifest);
    }

    function check_register(address account, bytes32 manifest) private {
        bytes32 expected = runOf(block.chainid, address(registry), account, 0);
        vm.recordLogs();
        vm.prank(account);
        bytes32 run = registry.register(manifest);
        assertEq(run, expected, "run");
        assertEq(registry.registrations(account), 1, "count");

        Vm.Log memory log = onlyLog();
        assertEq(log.topics.length, 3, "topics");
        assertEq(log.topics[0], IPolRegistry.Registered.selector, "event");
        assertEq(log.topics[1], run, "run topic");
        assertEq(log.topics[2], bytes32(uint256(uint160(account))), "account topic");
        assertEq(log.data, abi.encode(uint64(0), manifest), "data");
    }

    function test_accounts_count_separately() public {
        registerAs(ALICE);
        registerAs(ALICE);
        registerAs(MALLORY);
        assertEq(registry.registrations(ALICE), 2, "alice");
        assertEq(registry.registrations(MALLORY), 1, "mallory");
    }

    function testFuzz_registrations_count_from_zero(address account, uint8 times) public {
        for (uint64 nonce = 0; nonce < times % 16; nonce++) {
            assertEq(registerAs(account), registry.runOf(account, nonce), "run");
        }
        assertEq(registry.registrations(account), times % 16, "count");
    }

    function test_a_run_is_bound_to_its_chain() public {
        bytes32 here = registry.runOf(ALICE, 0);
        vm.chainId(11155111);
        assertEq(registry.runOf(ALICE, 0), runOf(11155111, address(registry), ALICE, 0), "run");
        require(registry.runOf(ALICE, 0) != here, "same run on two chains");
    }

    function test_a_run_is_bound_to_its_contract() public {
        require(registry.runOf(ALICE, 0) != new PolRegistry().runOf(ALICE, 0), "same run in two contracts");
    }

    function testFuzz_run_is_its_definition(uint64 chainId, address account, uint64 nonce) public {
        vm.assume(chainId > 0);
        vm.chainId(chainId);
        assertEq(registry.runOf(account, nonce), runOf(chainId, address(registry), account, nonce), "run");
    }

    // Anchors

    function test_the_first_anchor_has_sequence_one_and_says_so() public {
        check_anchor(ALICE, keccak256("commitment"), "envelope");
    }

    function testFuzz_anchor(address account, bytes32 commitment, bytes calldata envelope) public {
        check_anchor(account, commitment, envelope);
    }

    function check_anchor(address account, bytes32 commitment, bytes memory envelope) private {
        bytes32 run = registerAs(account);
        vm.recordLogs();
        vm.prank(account);
        uint64 sequence = registry.anchor(0, bytes24(0), commitment, envelope);
        assertEq(sequence, 1, "sequence");
        Vm.Log memory log = onlyLog();
        assertEq(log.topics.length, 3, "topics");
        assertEq(log.topics[0], IPolRegistry.Anchored.selector, "event");
        assertEq(log.topics[1], run, "run topic");
        assertEq(log.topics[2], bytes32(uint256(1)), "sequence topic");
        assertEq(log.data, abi.encode(commitment, envelope), "data");

        (uint64 stored, bytes24 chained) = registry.head(run);
        assertEq(stored, 1, "stored sequence");
        assertEq(chained, chain(run, 1, bytes24(0), commitment, envelope), "head");
    }

    function test_three_anchors_chain() public {
        check_chain(ALICE, keccak256("seed"), 3);
    }

    function testFuzz_anchors_chain(address account, bytes32 seed, uint8 length) public {
        check_chain(account, seed, length % 9);
    }

    function check_chain(address account, bytes32 seed, uint64 length) private {
        bytes32 run = registerAs(account);
        bytes24 previous;
        for (uint64 sequence = 1; sequence <= length; sequence++) {
            seed = keccak256(abi.encode(seed));
            bytes memory envelope = abi.encodePacked(seed, sequence);
            vm.prank(account);
            assertEq(registry.anchor(0, previous, seed, envelope), sequence, "sequence");
            previous = chain(run, sequence, previous, seed, envelope);
        }
        (uint64 stored, bytes24 chained) = registry.head(run);
        assertEq(stored, length, "stored sequence");
        assertEq(chained, previous, "head");
    }

    function test_the_same_anchor_cannot_be_sent_twice() public {
        check_moved(ALICE, keccak256("commitment"), "envelope", bytes24(0));
    }

    function test_an_anchor_on_a_wrong_head_is_refused() public {
        check_moved(ALICE, keccak256("commitment"), "envelope", bytes24(uint192(1)));
    }

    function testFuzz_an_anchor_on_any_other_head_is_refused(
        address account,
        bytes32 commitment,
        bytes calldata envelope,
        bytes24 given
    ) public {
        check_moved(account, commitment, envelope, given);
    }

    function check_moved(address account, bytes32 commitment, bytes memory envelope, bytes24 given) private {
        bytes32 run = registerAs(account);
        vm.prank(account);
        registry.anchor(0, bytes24(0), commitment, envelope);
        (, bytes24 present) = registry.head(run);
        vm.assume(given != present);
        vm.prank(account);
        vm.expectRevert(abi.encodeWithSelector(IPolRegistry.HeadMoved.selector, run, present, given));
        registry.anchor(0, given, commitment, envelope);
        (uint64 sequence, bytes24 after_) = registry.head(run);
        assertEq(sequence, 1, "sequence after refusal");
        assertEq(after_, present, "head after refusal");
    }

    function test_the_first_anchor_has_no_previous_head() public {
        check_first(ALICE, bytes24(uint192(7)));
    }

    function testFuzz_the_first_anchor_has_no_previous_head(address account, bytes24 given) public {
        check_first(account, given);
    }

    function check_first(address account, bytes24 given) private {
        vm.assume(given != bytes24(0));
        bytes32 run = registerAs(account);
        vm.prank(account);
        vm.expectRevert(abi.encodeWithSelector(IPolRegistry.HeadMoved.selector, run, bytes24(0), given));
        registry.anchor(0, given, 0, "");
    }

    function test_nobody_anchors_without_registering() public {
        check_unregistered(MALLORY, 0, 0);
    }

    function test_nobody_anchors_a_run_not_yet_registered() public {
        check_unregistered(ALICE, 2, 2);
    }

    function testFuzz_nobody_anchors_an_unregistered_run(address account, uint8 registered, uint64 nonce) public {
        check_unregistered(account, registered % 5, nonce);
    }

    function check_unregistered(address account, uint64 registered, uint64 nonce) private {
        vm.assume(nonce >= registered);
        for (uint64 i = 0; i < registered; i++) registerAs(account);
        vm.prank(account);
        vm.expectRevert(abi.encodeWithSelector(IPolRegistry.NotRegistered.selector, account, nonce));
        registry.anchor(nonce, bytes24(0), 0, "");
    }

    function test_an_anchor_touches_no_other_run() public {
        check_isolation(ALICE, MALLORY);
    }

    function testFuzz_an_anchor_touches_no_other_run(address owner, address other) public {
        check_isolation(owner, other);
    }

    /// @dev A copied anchor lands in the copier's own run, whatever they pass.
    function check_isolation(address owner, address other) private {
        vm.assume(owner != other);
        bytes32 run = registerAs(owner);
        bytes32 run2 = registerAs(owner);
        registerAs(other);
        vm.prank(other);
        registry.anchor(0, bytes24(0), keccak256("copied"), "copied");
        (uint64 sequence, bytes24 chained) = registry.head(run);
        (uint64 sequence2,) = registry.head(run2);
        assertEq(sequence, 0, "sequence");
        assertEq(sequence2, 0, "sequence of the second run");
        assertEq(chained, bytes24(0), "head");
    }

    // Challenges

    function test_anyone_challenges_and_the_first_has_id_one() public {
        check_challenge(MALLORY, [bytes32("verifier"), "commitment", "request", "nonce", "sig", "nature"]);
    }

    function testFuzz_challenge(address sender, bytes32[6] calldata words) public {
        check_challenge(sender, words);
    }

    function check_challenge(address sender, bytes32[6] memory words) private {
        bytes32 run = anchoredRun();
        vm.recordLogs();
        vm.prank(sender);
        uint64 id = registry.challenge(run, words[0], words[1], words[2], words[3], [words[4], words[5]]);
        assertEq(id, 1, "id");
        assertEq(registry.challenges(run), 1, "count");
        Vm.Log memory log = onlyLog();
        assertEq(log.topics.length, 4, "topics");
        assertEq(log.topics[0], IPolRegistry.Challenged.selector, "event");
        assertEq(log.topics[1], run, "run topic");
        assertEq(log.topics[2], bytes32(uint256(1)), "id topic");
        assertEq(log.topics[3], words[0], "verifier topic");
        assertEq(log.data, abi.encode(words[1], words[2], words[3], [words[4], words[5]]), "data");
    }

    function test_challenges_count_per_run() public {
        check_count(2, 3);
    }

    function testFuzz_challenges_count_per_run(uint8 first, uint8 second) public {
        check_count(first % 16, second % 16);
    }

    function check_count(uint64 first, uint64 second) private {
        bytes32 run = anchoredRun();
        bytes32 other = anchoredRun();
        for (uint64 i = 1; i <= first; i++) assertEq(challengeRun(run), i, "id");
        for (uint64 i = 1; i <= second; i++) assertEq(challengeRun(other), i, "id of the other run");
        assertEq(registry.challenges(run), first, "count");
        assertEq(registry.challenges(other), second, "count of the other run");
    }

    function test_nothing_to_challenge_before_the_first_anchor() public {
        bytes32 run = registerAs(ALICE);
        vm.expectRevert(abi.encodeWithSelector(IPolRegistry.NothingAnchored.selector, run));
        registry.challenge(run, 0, 0, 0, 0, [bytes32(0), 0]);
    }

    function testFuzz_nothing_to_challenge_in_an_unknown_run(bytes32 run) public {
        vm.expectRevert(abi.encodeWithSelector(IPolRegistry.NothingAnchored.selector, run));
        registry.challenge(run, 0, 0, 0, 0, [bytes32(0), 0]);
    }

    // Ether and storage

    function test_ether_is_refused() public {
        check_ether(abi.encodeCall(IPolRegistry.register, (bytes32(0))), 1);
        check_ether("", 1);
    }

    function testFuzz_ether_is_refused(bytes calldata data, uint96 value) public {
        check_ether(data, value);
    }

    function check_ether(bytes memory data, uint96 value) private {
        vm.assume(value > 0 && value <= address(this).balance);
        (bool taken,) = address(registry).call{value: value}(data);
        require(!taken && address(registry).balance == 0, "took ether");
    }

    function test_an_anchor_writes_one_slot() public {
        registerAs(ALICE);
        vm.record();
        vm.prank(ALICE);
        registry.anchor(0, bytes24(0), keccak256("commitment"), "envelope");
        (, bytes32[] memory writes) = vm.accesses(address(registry));
        assertEq(writes.length, 1, "slots written");
    }

    // Helpers

    function registerAs(address account) private returns (bytes32) {
        vm.prank(account);
        return registry.register(keccak256("manifest"));
    }

    function anchoredRun() private returns (bytes32 run) {
        uint64 nonce = registry.registrations(ALICE);
        run = registerAs(ALICE);
        vm.prank(ALICE);
        registry.anchor(nonce, bytes24(0), keccak256("commitment"), "envelope");
    }

    function challengeRun(bytes32 run) private returns (uint64) {
        return registry.challenge(run, bytes32("verifier"), 0, 0, 0, [bytes32(0), 0]);
    }

    function onlyLog() private returns (Vm.Log memory) {
        Vm.Log[] memory logs = vm.getRecordedLogs();
        assertEq(logs.length, 1, "logs");
        assertEq(bytes32(uint256(uint160(logs[0].emitter))), bytes32(uint256(uint160(address(registry)))), "emitter");
        return logs[0];
    }

    function runOf(uint256 chainId, address where, address account, uint64 nonce) private pure returns (bytes32) {
        return sha256(bytes.concat(RUN_TAG, bytes8(uint64(chainId)), bytes20(where), bytes20(account), bytes8(nonce)));
    }

    function chain(bytes32 run, uint64 sequence, bytes24 previous, bytes32 commitment, bytes memory envelope)
        private
        pure
        returns (bytes24)
    {
        return
            bytes24(sha256(bytes.concat(CHAIN_TAG, run, bytes8(sequence), previous, commitment, sha256(envelope))));
    }
}
