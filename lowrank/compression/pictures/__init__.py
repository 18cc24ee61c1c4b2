"""What the results of compression look like."""
