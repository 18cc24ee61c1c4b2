"""What data says of every layer."""
