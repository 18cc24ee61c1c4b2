"""Factorize trained networks under a budget; recover sparse signals with a certificate."""
