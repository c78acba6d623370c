"""Text classification from descriptions of the classes, without training."""
