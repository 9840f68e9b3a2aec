"""Instructions that tie items' codes to language: titles, wishes in words, and what a history leads to.

They go before or beside the recommendation itself (LC-Rec: Zheng et al., 2024), as examples of a language model:

    title → codes    wish → codes    codes → title    codes of a history → a wish for what came next

Only training interactions are read. Wishes come from the catalogue's facts by rule (`intentions`).
"""

from collections.abc import Iterator

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.preparation.wording.intentions import Describer
from instructrec_jax.preparation.wording.wordings import load_wordings
from instructrec_jax.ranking.catalogue import Catalogue, Splits
from instructrec_jax.ranking.semantic_ids import SemanticIds

HISTORY = 10  # items of a history, the last ones before the item that a wish is for
# Form -> wordings of training, and wordings that are held out.
ASKED = {
    "title to id": (
        ("Which codes name the {noun} “{title}”?", "Write the codes of “{title}”.", "Name “{title}” by its codes."),
        ("By which codes is the {noun} “{title}” known?",),
    ),
    "id to title": (
        ("Which {noun} has the codes {codes}?", "What is the title of {codes}?", "Name the {noun} {codes}."),
        ("What do the codes {codes} stand for?",),
    ),
    "wish to id": (
        ("Somebody wants {wish}. Name one by its codes.", "Find {wish}.", "Write the codes of {wish}."),
        ("Which codes would suit somebody who asks for {wish}?",),
    ),
    "history to wish": (
        (
            "These were chosen:\n{history}\nWhat may this person ask for next?",
            "{history}\nDescribe the {noun} that comes next.",
            "After these, what would this person like?\n{history}",
        ),
        ("Somebody chose\n{history}\nPut into words what follows.",),
    ),
}


def alignment_examples(
    ids: SemanticIds, catalogue: Catalogue, splits: Splits | None, *, held_out: bool, noun: str, seed: int
) -> Iterator[Example]:
    """One example of each form for each item (of wishes: where its facts allow one), or user (of histories).

    Args:
      ids: of the catalogue's items, in its order.
      splits: without them there are no histories.
      held_out: in wordings that the other examples do not have.

    Raises:
      ValueError: the wordings have no such noun.
    """
    words = load_wordings()
    name = words.noun(noun)["en"]["noun"]
    describer, rng = Describer(catalogue, words, noun), np.random.default_rng([seed, held_out])

    def example(form: str, number: int, output: str, **slots: str) -> Example:
        texts = ASKED[form][held_out]
        text = texts[int(rng.integers(len(texts)))].format(noun=name, **slots)
        origin = {"form": form, "wording": "held_out" if held_out else "train"}
        return Example(instruction=text, output=output, id=f"{form} {number}", task="alignment", origin=origin)

    def wish(item: int) -> str | None:
        said = describer.intention(item, "specific", "en", rng) or describer.intention(item, "vague", "en", rng)
        return None if said is None else said.text

    for item in range(len(catalogue)):
        codes, title = ids.text(item), catalogue.name(item)
        yield example("title to id", item, codes, title=title)
        yield example("id to title", item, title, codes=codes)
        if (wanted := wish(item)) is not None:
            yield example("wish to id", item, codes, wish=wanted)
    for user, items in enumerate([] if splits is None else splits.train):
        if len(items) > 1 and (wanted := wish(int(items[-1]))) is not None:
            history = "\n".join(ids.text(int(item)) for item in items[-1 - HISTORY : -1])
            yield example("history to wish", user, wanted, history=history)
