"""Why a run predicts what it predicts: attributions to words, and whether they can be trusted."""
