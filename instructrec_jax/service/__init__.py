"""The service: many requests at a time, answered together by one opened run."""
