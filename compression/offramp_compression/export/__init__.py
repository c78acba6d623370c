"""A network as a version of a model in a repository: written, compared with the original, and put there whole."""
