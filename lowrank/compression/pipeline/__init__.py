"""The calls that run it all."""
