"""Fast answers on a CPU: packed weights, attention of one query, huge pages."""
