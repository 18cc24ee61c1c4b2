"""The bundled network and signals, and what the demonstrations do with them."""
