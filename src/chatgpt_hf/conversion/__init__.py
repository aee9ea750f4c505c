"""Checkpoints of other families, in and out."""
