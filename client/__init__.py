"""Python client (sync and async) and the benchmark records."""
