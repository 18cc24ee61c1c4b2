"""Methods for tables of words, some of which are read far more often than others."""
