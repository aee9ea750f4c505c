"""An OpenAI-compatible server over transformers' own serving code."""
