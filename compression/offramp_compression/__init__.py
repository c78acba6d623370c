"""Make a smaller model out of a good one, measure what it is worth, and put it into a model repository."""
