"""Tables and examples as text: marks, ties, verdicts and hostile text."""

from report_files import EVIL, evaluation, examples

from instructrec_jax.evaluation.tables import format_examples, format_table, lower_is_better, verdict


def test_table_as_text():
    assert format_table(evaluation()) == (
        "Rank 412 films.\n"
        "\n"
        "              NDCG@10      mse\n"
        "popularity     0.1000   1.2500*\n"
        "after tuning   0.3457*  2.5000\n"
        "Markov-1            –        –\n"
        "* best in its column\n"
        "\n"
        "Paired differences (95% bootstrap)\n"
        "after tuning − popularity  NDCG@10  +0.2457  [+0.2000, +0.3000]  significantly better (95%)\n"
        "mse                        mse      +1.2500  [+1.0000, +1.5000]  significantly worse (95%)\n"
        "Markov-1 − popularity      NDCG@10  +0.0000  [-0.1000, +0.1000]  not significant"
    )


def test_ties_are_all_marked_and_a_lone_row_is_not():
    rows = [{"name": name, "values": {"accuracy": value}} for name, value in (("a", 0.5), ("b", 0.5), ("c", 0.1))]
    marked = format_table({"metrics": ["accuracy"], "rows": rows}).splitlines()
    assert [line.endswith("*") for line in marked] == [False, True, True, False, False]
    assert "*" not in format_table({"metrics": ["accuracy"], "rows": rows[:1]})
    assert "*" not in format_table({"metrics": ["accuracy"], "rows": rows[:2]})  # nothing differs


def test_examples_as_text():
    assert format_examples(examples()) == (
        "“something in space Moon (2009)”\n"
        "  1.   2.5000  Alien (1979)\n"
        "* 2.   1.2500  Moon (2009)\n"
        "    target: Moon (2009)\n"
        "\n"
        "“anything”"
    )


def test_text_for_the_terminal_cannot_steer_it():
    output = format_table(evaluation(EVIL, EVIL, EVIL)) + format_examples(examples(EVIL))
    assert "\x1b" not in output and "\x00" not in output


def test_gini_is_better_when_lower():
    assert lower_is_better("Gini@10") and not lower_is_better("coverage@10") and not lower_is_better("uni9 HR@1")


def test_a_difference_of_nothing_is_no_chance():
    assert verdict({"metric": "accuracy", "low": 0.0, "high": 0.0}) == "no difference"
    assert verdict({"metric": "accuracy", "low": -0.1, "high": 0.0}) == "not significant"
