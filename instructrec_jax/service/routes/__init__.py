"""The service's routes, one module for each kind of question."""
