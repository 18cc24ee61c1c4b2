"""What the methods have in common: the protocol, and fits in a metric."""
