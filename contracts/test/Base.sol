// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @dev The few cheat codes of the test runner that these tests use, by their selectors.
interface Vm {
    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }

    function assume(bool condition) external pure;
    function chainId(uint256 id) external;
    function cool(address target) external;
    function expectRevert(bytes calldata reason) external;
    function getRecordedLogs() external returns (Log[] memory);
    function prank(address sender) external;
    function recordLogs() external;
    function record() external;
    function accesses(address target) external returns (bytes32[] memory reads, bytes32[] memory writes);
}

/// @title What a test here needs of a framework: cheat codes, comparisons, and a way to print a figure
abstract contract Base {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    event log_named_uint(string key, uint256 value);

    error Different(string what, bytes32 found, bytes32 expected);
    error TooLarge(string what, uint256 found, uint256 limit);

    function assertEq(bytes32 found, bytes32 expected, string memory what) internal pure {
        if (found != expected) revert Different(what, found, expected);
    }

    function assertEq(uint256 found, uint256 expected, string memory what) internal pure {
        assertEq(bytes32(found), bytes32(expected), what);
    }

    function assertEq(bytes memory found, bytes memory expected, string memory what) internal pure {
        assertEq(keccak256(found), keccak256(expected), what);
    }

    function assertAtMost(uint256 found, uint256 limit, string memory what) internal pure {
        if (found > limit) revert TooLarge(what, found, limit);
    }
}
