"""Layers whose weights are stored at a few bits each."""
