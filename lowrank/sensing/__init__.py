"""Measurements in, signal out."""
