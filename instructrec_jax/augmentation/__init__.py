"""Changed copies of texts: synonyms, deletions, swaps and typing errors, on words that may change."""
