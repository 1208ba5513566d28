"""The networks, in PyTorch, and the operators they bring along."""
