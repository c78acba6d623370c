"""What a benchmark run needs around the servers: environments, processes, load, checks, reports."""
