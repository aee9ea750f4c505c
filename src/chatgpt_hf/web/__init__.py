"""Limits that every HTTP server here enforces: deadlines, sizes and who may ask."""
