"""Trained network in, smaller network out."""
