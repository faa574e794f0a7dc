"""What finds and repairs lost work: the reconciler and the replay buffer."""
