"""Reports, model cards and the estimate of energy that every run leaves behind."""
