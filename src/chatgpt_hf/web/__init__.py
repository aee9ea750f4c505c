"""What every HTTP server of this package holds: deadlines, sizes and who may ask."""
