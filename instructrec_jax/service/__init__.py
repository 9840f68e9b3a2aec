"""The HTTP service on opened runs: routes, batching, limits, keys and monitoring."""
