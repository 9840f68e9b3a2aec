"""A language model as teacher: rephrases the requests of generated examples."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from instructrec_jax.data.example import Example
from instructrec_jax.preparation.wording.intentions import names_title
from instructrec_jax.ranking.catalogue import Catalogue

PROMPTS = {
    "en": "Say this request in other words, in one short phrase, and name no titles: {request}",
    "zh": "请用一个简短的说法换种方式表达这个请求，不要提到任何名称：{request}",
}


Teacher = Callable[[Sequence[str]], Sequence[str]]
"""prompts -> answers"""


def rewrite_with_teacher(
    examples: Sequence[Example], teacher: Teacher, catalogue: Catalogue, name: str = "teacher"
) -> tuple[list[Example], Counter[str]]:
    """The examples with their requests (`origin.intention_text`) rephrased by a teacher; others are unchanged.

    An answer that is empty, or contains the title of the target item, is not used: the example is unchanged, and a
    warning counts these cases. `origin.teacher` is the teacher's name, or "not used: ..." for such answers.

    Args:
      teacher: called once, with all distinct requests.
      name: name of the teacher in `origin`.

    Returns:
      the examples in order, and counts of: rewritten, empty, title, no request.
    """
    prompts = [
        PROMPTS[example.origin["language"]].format(request=example.origin["intention_text"])
        for example in examples
        if example.origin.get("intention_text")
    ]
    distinct = list(dict.fromkeys(prompts))
    said = [" ".join(answer.split()).rstrip(".。") for answer in teacher(distinct)] if distinct else []
    answers = dict(zip(distinct, said, strict=True))
    ordered = iter(prompts)
    counts: Counter[str] = Counter()
    result = []
    for example in examples:
        request = example.origin.get("intention_text", "")
        if not request:
            counts["no request"] += 1
            result.append(example)
            continue
        answer = answers[next(ordered)]
        fault = "" if answer else "empty"
        if answer and names_title(answer, catalogue.titles[catalogue.index[example.origin["target"]]]):
            fault = "title"
        counts[fault or "rewritten"] += 1
        origin = {**example.origin, "teacher": f"not used: {fault}" if fault else name}
        if not fault:
            origin["intention_text"] = answer
            example = replace(
                example,
                instruction=example.instruction.replace(request, answer, 1),
                output=answer if example.output == request else example.output,
            )
        result.append(replace(example, origin=origin))
    if unused := counts["empty"] + counts["title"]:
        warnings.warn(
            f"{unused} of {unused + counts['rewritten']} requests are unchanged: the teacher's answer was empty "
            f"({counts['empty']}) or named the target item ({counts['title']}).",
            stacklevel=2,
        )
    return result, counts
