"""What tuned classifiers are put to work at: a watch over a stream of news, a desk that answers requests."""
