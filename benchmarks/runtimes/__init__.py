"""Code that runs inside the servers' own interpreters; nothing here may import the harness."""
