"""Speed and memory of our models, compared with other implementations and the machine's limits."""
