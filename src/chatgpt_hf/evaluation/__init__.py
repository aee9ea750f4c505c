"""Evaluation of models on held-out text, answers, benchmarks and code."""
