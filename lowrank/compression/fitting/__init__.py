"""Fill a plan: layer by layer, block by block, end to end."""
