"""An OpenAI-compatible server on top of transformers' own serving code."""
