"""One line for each term of a report: metrics, baselines, phrasings. Only those that occur are shown."""

import re
from collections.abc import Iterable

TERMS = (  # (term, its explanation); a term is found as whole words, with or without a cutoff such as @10
    (
        "NDCG@k",
        "quality of the first k of a ranking: 1 when the positive item is first, less the lower it is, 0 below k.",
    ),
    ("HR@k", "hit rate: share of the cases with a positive item among the first k."),
    ("MRR@k", "mean of 1 / rank of the first positive item, 0 below k."),
    ("Recall@k", "share of a case's positive items among the first k."),
    ("coverage@k", "share of the catalog that is recommended to somebody."),
    ("Gini@k", "how unevenly items are recommended: 0 all equally often, 1 always the same."),
    ("novelty@k", "how unpopular the recommended items are: mean of −log2 of their share of the interactions."),
    ("macro_f1", "F1 (harmonic mean of precision and recall) of each label, averaged over labels."),
    ("micro_f1", "F1 (harmonic mean of precision and recall) over all decisions."),
    ("sample_f1", "F1 of each case's set of labels, averaged over cases."),
    ("subset_accuracy", "share of the cases whose set of labels is exactly right."),
    ("span_f1", "F1 (harmonic mean of precision and recall) of spans: kind and both ends are right."),
    ("f1", "F1 (harmonic mean of precision and recall)."),
    ("exact_match", "share of the cases whose answer equals a reference, apart from case, punctuation and articles."),
    ("ece", "expected calibration error: mean distance between confidence and accuracy; lower is better."),
    ("wer", "word error rate: edits ÷ words of the references; lower is better."),
    ("cer", "character error rate: edits ÷ characters of the references; lower is better."),
    ("mse", "mean squared error; lower is better."),
    ("pearson", "linear correlation, from −1 to 1."),
    ("spearman", "correlation of ranks, from −1 to 1."),
    ("perplexity", "exponential of the mean loss per token; lower is better."),
    ("BLEU", "overlap of word n-grams with the references, from 0 to 1."),
    ("chrF", "overlap of character n-grams with the references, from 0 to 1."),
    ("rouge1", "F1 of single words shared with the reference."),
    ("rouge2", "F1 of pairs of words shared with the reference."),
    ("rougeL", "F1 of the longest common sequence of words."),
    ("seen phrasings", "instructions worded as some of the training instructions are."),
    ("unseen phrasings", "instructions in words that no training instruction uses: the harder, honest number."),
    ("before tuning", "the pretrained network with its new head, before the first step."),
    ("popularity", "baseline: items by their number of training interactions."),
    ("Markov-1", "baseline: items by how often they directly followed the last item of the history."),
    ("coKNN", "baseline: items that users of the history's items also chose, normalized by popularity."),
    ("coKNN-tuned", "baseline: coKNN with window, decay and direction tuned on validation items."),
    ("ItemKNN", "baseline: cosine of the users of two items, in any order; tuned on validation items."),
    ("EASE", "baseline: linear autoencoder in closed form (Steck, 2019); tuned on validation items."),
    ("BPR-MF", "baseline: matrix factorization trained on pairs of a chosen and another item."),
    ("BM25", "baseline: items by the words that their text shares with the instruction."),
    ("TF-IDF", "baseline: a linear model on weighted counts of words."),
)


def terms_in(names: Iterable[str]) -> dict[str, str]:
    """Term -> explanation, of the terms that occur in names of rows and metrics."""
    text = "\n".join(names)

    def occurs(term: str) -> bool:
        stem, cutoff = re.escape(term.removesuffix("@k")), r"@\d+" if term.endswith("@k") else ""
        return re.search(rf"(?<![\w-]){stem}{cutoff}(?![\w@-])", text) is not None

    return {term: said for term, said in TERMS if occurs(term)}
