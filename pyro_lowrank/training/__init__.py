"""Training: minibatches, the loop over steps, checkpoints."""
