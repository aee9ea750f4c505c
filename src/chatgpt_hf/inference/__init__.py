"""Generating text and chatting with a model."""
