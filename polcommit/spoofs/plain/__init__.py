"""Plain Proof-of-Learning (Jia et al., IEEE S&P 2021, Algorithms 1 and 2), as the baseline. It exists to be fooled.

A prover logs P = (W, I, H, A): a checkpoint of weights and optimizer every k steps, the data of each step by index and
hash, and the hyperparameters. A verifier takes, for each epoch, the Q intervals with the largest updates, loads the
prover's own checkpoint with the prover's own optimizer state, runs the k steps with the prover's own learning rates,
and accepts if the weights come out within δ of the next checkpoint.

Nothing here is committed, signed or timestamped; the verifier's choice is known beforehand; the optimizer state is
never compared with anything; what a prover wants to be the data, order, rate and start is. Those are the holes
that the spoofs in `attacks` go through, and none of this is to be relied on for anything else.
"""
