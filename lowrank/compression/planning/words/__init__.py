"""Planning for language models."""
