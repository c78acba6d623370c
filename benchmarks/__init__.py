"""Benchmarks of the Offramp server beside other servers, in one interleaved run."""
