"""Choosing the right continuation among several."""
