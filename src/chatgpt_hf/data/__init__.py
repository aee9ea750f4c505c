"""Reads corpora and turns them into training rows."""
