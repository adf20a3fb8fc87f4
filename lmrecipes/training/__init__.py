"""Engine, loop, checkpoints and export."""
