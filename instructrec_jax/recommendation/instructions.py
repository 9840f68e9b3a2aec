"""Instruction examples from histories: what someone chose lately, in words; the answer is the next item."""

from collections.abc import Iterator, Mapping

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.recommendation.catalogue import SPLITS, Catalogue, Splits

# {titles} is replaced by the last titles, oldest first, joined by "; ". Names go into Example.origin.
TEMPLATES: Mapping[str, Mapping[str, str]] = {
    "film": {
        "film-recent": "I recently watched {titles}. What should I watch next?",
        "film-order": "The films I have seen lately, oldest first: {titles}. Recommend the next one.",
        "film-evening": "My last film evenings were {titles}. Which film fits tonight?",
        "film-guess": "Someone has just watched {titles}. Guess which film they will choose next.",
        "film-similar-taste": "Given that I picked {titles}, find me another film I would pick.",
        "film-short": "{titles}. And now?",
    },
    "item": {
        "item-recent": "I recently chose {titles}. What should I choose next?",
        "item-order": "These are my latest picks, oldest first: {titles}. Recommend the next one.",
        "item-cart": "So far I have taken {titles}. Which item goes on from there?",
        "item-guess": "A customer has just picked {titles}. Guess what they will want next.",
        "item-similar-taste": "Given that I went for {titles}, find me another thing I would like.",
        "item-short": "{titles}. And now?",
    },
}


def history_examples(
    catalogue: Catalogue,
    splits: Splits,
    split: str,
    *,
    wording: str,
    titles_in_prompt: int,
    history_limit: int,
    examples_per_user: int | None,
    seed: int,
) -> Iterator[Example]:
    """Next-item examples of one split; a function of its arguments alone.

    In train every item of a user but the first is a target once (or `examples_per_user` of them, drawn at
    random), with the last `history_limit` items before it as `history`. In validation and test each held-out
    item is a target and `history` is everything the user had before: an evaluator masks seen items with it.
    The prompt names the last `titles_in_prompt` items, oldest first. User ids go to `origin` only.
    """
    if wording not in TEMPLATES:
        raise ValueError(f"unknown wording {wording!r}; there is {', '.join(TEMPLATES)}.")
    smallest = min(titles_in_prompt, history_limit, 1 if examples_per_user is None else examples_per_user)
    if smallest < 1:
        raise ValueError("titles_in_prompt, history_limit and examples_per_user must be at least 1.")
    templates = list(TEMPLATES[wording].items())
    count = 0
    for user, user_id in enumerate(splits.user_ids):
        rng = np.random.default_rng((seed, SPLITS.index(split), user))
        earlier = [getattr(splits, name)[user] for name in SPLITS[: SPLITS.index(split)]]
        items = np.concatenate([*earlier, getattr(splits, split)[user]])
        targets = np.arange(max(1, sum(map(len, earlier))), len(items))
        if split == "train" and examples_per_user is not None and len(targets) > examples_per_user:
            targets = np.sort(rng.choice(targets, examples_per_user, replace=False))
        for position in targets:
            history = items[max(0, position - history_limit) if split == "train" else 0 : position]
            name, template = templates[rng.integers(len(templates))]
            titles = "; ".join(catalogue.name(number) for number in history[-titles_in_prompt:])
            yield Example(
                instruction=template.replace("{titles}", titles),
                output=catalogue.ids[items[position]],
                history=tuple(catalogue.ids[number] for number in history),
                task="recommendation",
                id=f"{split}-{count}",
                origin={"template": name, "user": user_id, "split": split, "position": str(position)},
            )
            count += 1
