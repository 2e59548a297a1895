"""How fast, and how far from what the machine can do."""
