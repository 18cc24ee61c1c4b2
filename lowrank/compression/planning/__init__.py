"""What a budget buys: candidates, curves, plans."""
