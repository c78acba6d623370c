"""One module for each server that can take part in a run."""
