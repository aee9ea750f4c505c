"""What goes on inside a model: attention, lenses, attribution, surprise, ablation; as arrays, pictures and one page."""
