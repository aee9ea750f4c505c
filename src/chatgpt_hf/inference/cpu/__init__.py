"""Fast generation on a CPU: packed weights, attention for a single query, huge pages."""
