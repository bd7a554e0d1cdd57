"""The training loop: state, optimiser, step, checkpoints, metrics. It knows no concrete task."""
