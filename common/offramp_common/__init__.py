"""What the server and the compression library both need, and that knows nothing of either."""
