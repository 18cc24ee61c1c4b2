"""Which channels of which layers travel together, found by running a model with marks."""
