// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Registrations, anchored heads and challenges of training runs
/// @notice Orders and timestamps commitments; it judges none of them. What is committed is hidden until the prover opens
///         it, signatures inside commitments and challenges are checked by readers, and nothing here says how a model
///         was trained. There is no owner, no upgrade and no ether.
/// @dev Run identifiers and chained heads are SHA-256, so that readers off chain need no Keccak. A hash's domain tag is
///      ASCII ended by one NUL byte. Integers are big-endian.
interface IPolRegistry {
    /// @notice A run was registered. It belongs to `account` for ever: only that account can anchor its heads.
    /// @param run      SHA-256("polcommit/v1/run" ‖ NUL ‖ u64 chain id ‖ this contract ‖ account ‖ u64 nonce)
    /// @param account  who registered it
    /// @param nonce    how many runs the account had registered before; the first has 0
    /// @param manifest hiding commitment to the run's manifest
    event Registered(bytes32 indexed run, address indexed account, uint64 nonce, bytes32 manifest);

    /// @notice A head was anchored. Order claims by (block number, log index), never by block time.
    /// @param run        the run, bound to chain, contract, account and nonce at registration
    /// @param sequence   1 for the first head of the run, then rising by one
    /// @param commitment SHA-256(tag, blinding, head digest, SHA-256(statement)); hides all of it until opened
    /// @param envelope   the sealed, signed statement, for the verifiers it names
    event Anchored(bytes32 indexed run, uint64 indexed sequence, bytes32 commitment, bytes envelope);

    /// @notice Somebody paid for a challenge. Anyone can: readers ignore an event without a valid signature by a verifier
    ///         that the run's manifest names.
    /// @param run             the challenged run
    /// @param id              1 for the first challenge of the run, then rising by one
    /// @param verifier        Ed25519 public key
    /// @param commitment      the commitment of the challenged head, as anchored
    /// @param request         digest of the request, which the verifier stored before sending this
    /// @param nonceCommitment commitment to the verifier's share of the draw's randomness
    /// @param signature       Ed25519 signature by `verifier`; NOT checked by the contract, which has no precompile for it
    event Challenged(
        bytes32 indexed run,
        uint64 indexed id,
        bytes32 indexed verifier,
        bytes32 commitment,
        bytes32 request,
        bytes32 nonceCommitment,
        bytes32[2] signature
    );

    /// @notice `account` has not registered a run with this nonce.
    error NotRegistered(address account, uint64 nonce);

    /// @notice The run's head is `expected`, not `given`: this transaction, or another, was sent already.
    error HeadMoved(bytes32 run, bytes24 expected, bytes24 given);

    /// @notice The run has no anchored head that could be challenged.
    error NothingAnchored(bytes32 run);

    /// @notice Register a run of the caller's.
    /// @param manifest hiding commitment to the run's manifest
    /// @return run the new run's identifier
    function register(bytes32 manifest) external returns (bytes32 run);

    /// @notice Anchor the next head of a run of the caller's.
    /// @dev The new head is the first 24 bytes of
    ///      SHA-256("polcommit/v1/chain" ‖ NUL ‖ run ‖ u64 sequence ‖ previous ‖ commitment ‖ SHA-256(envelope)).
    ///      That `previous` must be the present head is what makes sending the same anchor twice impossible.
    /// @param nonce      of the run's registration
    /// @param previous   the run's present head; zero before the first
    /// @param commitment hiding commitment to the head's statement
    /// @param envelope   the sealed, signed statement
    /// @return sequence the head's number: 1 for the first
    function anchor(uint64 nonce, bytes24 previous, bytes32 commitment, bytes calldata envelope)
        external
        returns (uint64 sequence);

    /// @notice Challenge a head of a run; the draw comes from a later block. Whoever sends this pays for it.
    /// @dev The contract checks neither the signature nor that `commitment` was anchored: readers do, from events. It only
    ///      counts, so that no challenge can be passed over in silence.
    /// @param run             the run
    /// @param verifier        Ed25519 public key
    /// @param commitment      the commitment of the challenged head, as anchored
    /// @param request         digest of the request
    /// @param nonceCommitment commitment to the verifier's nonce
    /// @param signature       Ed25519 signature by `verifier`, in two halves; not checked here
    /// @return id the challenge's number: 1 for the run's first
    function challenge(
        bytes32 run,
        bytes32 verifier,
        bytes32 commitment,
        bytes32 request,
        bytes32 nonceCommitment,
        bytes32[2] calldata signature
    ) external returns (uint64 id);

    /// @notice How many runs `account` has registered.
    function registrations(address account) external view returns (uint64);

    /// @notice The identifier of the account's run with this nonce, whether or not it has been registered.
    function runOf(address account, uint64 nonce) external view returns (bytes32 run);

    /// @notice Number of heads that the run has anchored, and the chained hash over all of them; zeros before the first.
    function head(bytes32 run) external view returns (uint64 sequence, bytes24 chained);

    /// @notice How many challenges of the run have been sent, by anyone.
    function challenges(bytes32 run) external view returns (uint64);
}
