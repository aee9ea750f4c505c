"""Figures on held-out text and answers."""
