"""What a network is made of: layers, the stages that replace them, and how it runs."""
