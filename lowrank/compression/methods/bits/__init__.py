"""Methods that store weights at a few bits each."""
