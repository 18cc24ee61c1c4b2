"""What is chosen for every unit of a network: budgets, candidates, and the search among them."""
