"""What the packages beside it need together, and that knows nothing of any of them."""
