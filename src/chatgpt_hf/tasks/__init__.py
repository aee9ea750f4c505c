"""The tasks that a model is fine-tuned for, one folder per kind: rows, training and evaluation."""
