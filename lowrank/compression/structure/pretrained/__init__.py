"""Compressed models in folders of transformers' own form."""
