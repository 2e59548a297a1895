"""Speed and memory of our models, beside other implementations and the machine's limits."""
