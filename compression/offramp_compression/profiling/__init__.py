"""Where a network's parameters, operations, memory and time are."""
