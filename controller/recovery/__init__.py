"""Recovery of lost work: the reconciler, the replay buffer and the detection of data loss."""
