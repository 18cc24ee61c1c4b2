"""Plans, and the networks that they make."""
