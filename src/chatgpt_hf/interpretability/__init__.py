"""Looks inside a model: attention, lenses, attribution, surprise and ablation, as arrays, pictures and one page."""
