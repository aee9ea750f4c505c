"""Converts checkpoints from and to other model families."""
