"""The model and its pipelines: these files travel to the Hub with every saved model."""
