"""Terms of a report: those that occur, as whole words."""

from instructrec_jax.evaluation.terms import TERMS, terms_in


def test_a_term_is_explained_where_it_occurs_as_a_word() -> None:
    assert list(terms_in(["NDCG@10, seen phrasings", "Markov-1"])) == ["NDCG@k", "seen phrasings", "Markov-1"]
    assert terms_in(["my_f1", "f10", "NDCG@", "xNDCG@10", "popularity-based"]) == {}
    assert list(terms_in(["f1", "macro_f1"])) == ["macro_f1", "f1"]
    assert "seen phrasings" not in terms_in(["unseen"])
    assert terms_in([]) == {}


def test_each_term_finds_itself_and_is_explained_in_a_sentence() -> None:
    for term, said in TERMS:
        assert terms_in([term.replace("@k", "@5")])[term] == said
        assert said.endswith(".") and len(said) > 20
    assert len({term for term, _ in TERMS}) == len(TERMS)
