"""Measure a network: MACs, bytes, time, memory, quality."""
