"""What a prover and a verifier keep on disk: run folder, journal, tensors, states, blobs; pymerkle's second opinion.

Adapters (layer 3): they turn operating-system errors into `StorageError`, know file names and durability,
and know nothing of training, of the chain or of what a record means.
"""
