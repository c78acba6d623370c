"""Data sets: where they come from, what they must be, and the order in which training sees them."""
