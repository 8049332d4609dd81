// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPolRegistry} from "./IPolRegistry.sol";

/// @title The registry: see `IPolRegistry` for what each function and event means
/// @dev Has no constructor and no immutables: the deployed code, and so its hash, is the same on every chain.
contract PolRegistry is IPolRegistry {
    /// @dev One storage slot per run: 8 bytes of counter, 24 of hash. Truncating to 192 bits keeps second preimages at
    ///      2^192 and collisions at 2^96; only the run's own account could use a collision, against events that show it.
    struct Head {
        uint64 sequence;
        bytes24 chained;
    }

    mapping(address account => uint64 count) private _registrations;
    mapping(bytes32 run => Head) private _heads;
    mapping(bytes32 run => uint64 count) private _challenges;

    /// @inheritdoc IPolRegistry
    function register(bytes32 manifest) external returns (bytes32 run) {
        uint64 nonce = _registrations[msg.sender];
        _registrations[msg.sender] = nonce + 1;
        run = _runOf(msg.sender, nonce);
        emit Registered(run, msg.sender, nonce, manifest);
    }

    /// @inheritdoc IPolRegistry
    function anchor(uint64 nonce, bytes24 previous, bytes32 commitment, bytes calldata envelope)
        external
        returns (uint64 sequence)
    {
        if (nonce >= _registrations[msg.sender]) revert NotRegistered(msg.sender, nonce);
        // The run is computed, not looked up: that it is the sender's needs no stored owner.
        bytes32 run = _runOf(msg.sender, nonce);
        Head memory present = _heads[run];
        if (previous != present.chained) revert HeadMoved(run, present.chained, previous);
        sequence = present.sequence + 1;
        bytes24 chained = bytes24(
            sha256(abi.encodePacked("polcommit/v1/chain\x00", run, sequence, previous, commitment, sha256(envelope)))
        );
        _heads[run] = Head({sequence: sequence, chained: chained});
        emit Anchored(run, sequence, commitment, envelope);
    }

    /// @inheritdoc IPolRegistry
    function challenge(
        bytes32 run,
        bytes32 verifier,
        bytes32 commitment,
        bytes32 request,
        bytes32 nonceCommitment,
        bytes32[2] calldata signature
    ) external returns (uint64 id) {
        if (_heads[run].sequence == 0) revert NothingAnchored(run);
        id = _challenges[run] + 1;
        _challenges[run] = id;
        emit Challenged(run, id, verifier, commitment, request, nonceCommitment, signature);
    }

    /// @inheritdoc IPolRegistry
    function registrations(address account) external view returns (uint64) {
        return _registrations[account];
    }

    /// @inheritdoc IPolRegistry
    function runOf(address account, uint64 nonce) external view returns (bytes32 run) {
        return _runOf(account, nonce);
    }

    /// @inheritdoc IPolRegistry
    function head(bytes32 run) external view returns (uint64 sequence, bytes24 chained) {
        Head memory present = _heads[run];
        return (present.sequence, present.chained);
    }

    /// @inheritdoc IPolRegistry
    function challenges(bytes32 run) external view returns (uint64) {
        return _challenges[run];
    }

    /// @dev EIP-155 chain ids in use fit 64 bits; the contract's address keeps runs of two deployments apart.
    function _runOf(address account, uint64 nonce) private view returns (bytes32) {
        return sha256(abi.encodePacked("polcommit/v1/run\x00", uint64(block.chainid), address(this), account, nonce));
    }
}
