"""Take out of a network what it can do without: single weights, or whole channels so that it really shrinks."""
