"""Checkpoints of trials: what training code writes, where it survives, and which of them stay."""
