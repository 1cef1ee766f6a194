"""What the experiments read: pinned corpora and checkpoints."""
