"""The tasks that a model is fine-tuned for: a folder for each kind, with its rows, its training and its evaluation."""
