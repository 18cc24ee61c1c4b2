"""Tables of words whose rows are stored in different ways."""
