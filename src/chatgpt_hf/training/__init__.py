"""Pretraining and fine-tuning, on transformers' and TRL's trainers."""
