"""The wordings of instructions, by rule and language; `{}` marks what is filled in."""

from instructrec_jax.augmentation.edits import Draw
from instructrec_jax.synthesis.passages import Language

WORDINGS: dict[str, dict[Language, tuple[str, ...]]] = {
    "title": {
        "en": (
            "Give the text a title.",
            "What would be a good title for this text?",
            "Write a headline that says what the text is about.",
        ),
        "zh": ("请给这段文字起一个标题。", "这段文字的标题是什么？", "用一个标题说明这段文字的内容。"),
    },
    "cloze": {
        "en": (
            "Fill in the blank with what stands in the text: {}",
            "What is missing in this sentence of the text? {}",
            "Complete the sentence from the text. Answer with the missing part only: {}",
        ),
        "zh": (
            "根据文章填空：{}",
            "下面这句话中缺少的内容是什么？{}",
            "请根据文章补全句子，只回答空缺的部分：{}",
        ),
    },
    "order": {
        "en": (
            "Put these sentences into the order in which they make sense. Answer with the letters.\n{}",
            "These sentences follow each other in a text, but were shuffled. In which order do they belong?\n{}",
            "Arrange the sentences so that they read as one text, and give the order of the letters.\n{}",
        ),
        "zh": (
            "请将下面的句子排列成通顺的一段话，只回答字母的顺序。\n{}",
            "下面的句子顺序被打乱了，正确的顺序是什么？请回答字母。\n{}",
            "重新排列这些句子，使其成为连贯的段落，并写出字母的顺序。\n{}",
        ),
    },
    "describe": {
        "en": (
            "How does the text describe {}?",
            "What does the text say about {}?",
            "How is {} described in the text?",
        ),
        "zh": ("根据文章，{}是什么？", "文章是怎样介绍{}的？", "{}是什么？请根据文章回答。"),
    },
    "when": {
        "en": ("When {}?", "According to the text, when {}?", "Say when, by the text: when {}?"),
        "zh": ("{}？", "根据文章，{}？", "请根据文章回答：{}？"),
    },
    "where": {
        "en": ("Where {}?", "According to the text, where {}?", "Say where, by the text: where {}?"),
        "zh": ("{}？", "根据文章，{}？", "请根据文章回答：{}？"),
    },
    "who": {
        "en": ("Who {}?", "According to the text, who {}?", "Say who, by the text: who {}?"),
        "zh": ("{}？", "根据文章，{}？", "请根据文章回答：{}？"),
    },
    "how_many": {
        "en": ("How many {}?", "According to the text, how many {}?", "Say how many, by the text: how many {}?"),
        "zh": ("{}？", "根据文章，{}？", "请根据文章回答：{}？"),
    },
    "keywords": {
        "en": (
            "Find the sentence of the text with the words {}.",
            "Which sentence of the text has the words {}?",
            "Quote the sentence in which the text uses the words {}.",
        ),
        "zh": ("找出文章中含有“{}”的那句话。", "文章中哪一句话提到了“{}”？", "请引用文章中包含“{}”的句子。"),
    },
    "summary": {
        "en": (
            "Summarize the text in one sentence.",
            "Which one sentence says what the text is about?",
            "Say in one sentence what the text is about.",
        ),
        "zh": ("请用一句话概括这段文字。", "这段文字主要讲了什么？请用一句话回答。", "用一句话总结文章的内容。"),
    },
    "yes_no": {
        "en": (
            "Is this what the text says? Answer yes or no: {}",
            "Does the text say so? “{}” Answer yes or no.",
            "Yes or no, by what the text says: {}",
        ),
        "zh": (
            "下面的说法与文章一致吗？请回答“是”或“否”：{}",
            "根据文章判断，这个说法对不对？请回答“是”或“否”。{}",
            "文章是这样说的吗？回答“是”或“否”：{}",
        ),
    },
}
YES_NO: dict[Language, tuple[str, str]] = {"en": ("Yes", "No"), "zh": ("是", "否")}


def worded(name: str, language: Language, filled: str, draw: Draw) -> str:
    """One of the wordings, with `filled` in the place of `{}`."""
    choices = WORDINGS[name][language]
    return choices[int(draw() * len(choices))].replace("{}", filled)
