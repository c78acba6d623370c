"""Training that can be stopped at any time and goes on as if it had not been."""
