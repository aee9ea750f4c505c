"""The report, the model card and the energy estimate of every run."""
