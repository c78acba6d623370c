"""Exit heads on a network's inner modules: attach them, train them, and cut the network at them."""
