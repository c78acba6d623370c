"""A channel of our own, in place of grpcio's: docs/adr/0018 says why."""
