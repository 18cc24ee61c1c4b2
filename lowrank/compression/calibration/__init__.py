"""What is found out from data: moments, and what a fit aims at."""
