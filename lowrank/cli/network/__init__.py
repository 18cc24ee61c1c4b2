"""Commands on networks."""
