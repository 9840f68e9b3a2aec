"""Facts that a sentence states in a plain form, as questions with answers that stand in it.

Only forms whose question is certain: "X is a Y.", "X was founded in 1999", "X is located in Y", "X was written by Y",
"X has 20 Ys" and "X是一种Y", "X成立于1999年", "X位于Y", "X有20个Y". A subject is short, names something, and is no
pronoun; "In 1999, ..." and "Currently, ..." may stand before it, and brackets behind it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from instructrec_jax.synthesis.passages import Language

_NO_SUBJECT = frozenset(
    "it he she they we i you this that these those there here what which who whom whose where when why how if as "
    "although though while because since but and or so yet however moreover furthermore also all both some many most "
    "several few each every another other others such one two three no not none nothing our my your his her its their "
    "in on at by for from with to of during after before among between under over through without within despite first "
    "second third finally then thus hence therefore instead meanwhile today now recently once nowadays only even just "
    "perhaps according either neither more less another".split()
)
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = rf"(?:on (?:{_MONTH} \d{{1,2}},? \d{{4}}|\d{{1,2}} {_MONTH} \d{{4}})|in (?:{_MONTH} )?(?:1[0-9]|20)\d\d)"
_DONE = (
    "founded|established|built|born|published|released|created|completed|opened|introduced|invented|discovered|formed|"
    "signed|launched|designed|constructed|founded|first published|first released|developed|adopted|abolished|closed|"
    "destroyed|rebuilt|elected|appointed|crowned|killed|assassinated|executed|incorporated|ratified|written|composed|"
    "directed|produced|painted"
)
_MADE = "written|directed|composed|designed|founded|invented|discovered|painted|produced|created|built|developed"
_NAME = r"[A-Z][\w.'’-]*(?: (?:(?:of|the|de|da|di|von|van|la|le|al|bin|and) )?[A-Z][\w.'’-]*)*"
_SUBJECT = (
    r"(?:(?:Currently|Today|Historically|Originally|Traditionally|In (?:the )?[\w ]{3,25}), )?"
    r"(?P<x>(?:[A-Z]|an? |the )[^,;:()\"“”—–]{1,60}?)(?: \([^()]{1,50}\))?"
)
_IS = re.compile(
    rf"{_SUBJECT} (?P<verb>is|are|was|were) (?:also |now |still )?(?P<y>(?:an?|the|one of the) [^;:()\"“”—–]{{8,}}?)"
    r"(?=\.?$|[;:!?—–(]|, (?:and|but|which|who|where|while|with|although)\b)"
)
_WHEN = re.compile(
    rf"{_SUBJECT} (?P<verb>was|were) (?P<did>{_DONE})(?P<how> [a-zA-Z ]{{0,40}}?)? (?P<y>{_DATE})(?=[ ,.;])"
)
_WHERE = re.compile(
    rf"{_SUBJECT} (?P<verb>is|are|was|were) (?P<did>located|situated|based|headquartered|born) "
    rf"(?P<y>(?:in|on|near|at) (?:the )?{_NAME})(?=[,.;]| and | on | in )"
)
_WHO = re.compile(
    rf"{_SUBJECT} (?P<verb>was|were) (?P<did>{_MADE}) by (?P<y>{_NAME})(?=[,.;]| in | and | from | as | for )"
)
_NUMBER_WORDS = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundreds of|thousands of"
)
_COUNT = rf"(?:\d+(?:,\d{{3}})*|{_NUMBER_WORDS})(?: (?:hundred|thousand|million|billion))?"
_HOW_MANY = re.compile(
    rf"{_SUBJECT} (?P<verb>has|have|had|contains?|contained|includes?|included) (?:about |around |over |nearly |some |"
    rf"more than |at least |approximately )?(?P<y>{_COUNT}) "
    r"(?P<did>(?!more |other |times )(?:[a-z]+ ){0,2}[a-z]{3,}s)"
    r"(?=[,.;]| in | and | with | of | on | for | from | that | which )"
)
_DO = {"has": "does {} have", "have": "do {} have", "had": "did {} have"}
_DO |= {f"{verb}s": f"does {{}} {verb}" for verb in ("contain", "include")}
_DO |= {verb: f"do {{}} {verb}" for verb in ("contain", "include")}
_DO |= {"contained": "did {} contain", "included": "did {} include"}
_ARTICLE = frozenset(("the", "a", "an"))
_VAGUE = frozenset(
    "result results example idea goal aim reason thing case former latter one ones two three second first last next "
    "difference problem challenge question answer purpose".split()
)

_ZH_SUBJECT = (
    r"(?:(?:目前|如今|现在|今天)，?)?(?P<x>[^，。；：、！？“”‘’（）()《》\s]{2,16}?|《[^》]{1,20}》)"
    r"(?:（[^（）]{1,30}）)? ?"
)
_ZH_BAD = re.compile(
    r"^(?:这|那|它|他|她|我|你|您|此|其|该|但|而|也|就|不|都|还|只|如|若|因|所|虽|并|且|或|则|却|又|再|更|最|很|有|没|在|"
    r"当|从|对|于|由|与|和|以|为|之|即|尤|另|目前|现在|同时|然后|于是|今天|每|各|某|几|多|少|一|人们|大家|什么|谁|哪|怎|上述|以上|下面|另外|许多|大多|大部分)|"
    r"认为|表示|指出|显示|发现|现在$|目前$|曾经?$|当时$|主要$|其实$|[一的了着是可能应该会要将也都还又并且不就]$|"
    r"(?:原因|目的|问题|结果|时候|之一|做法)$"
)
_ZH_IS = re.compile(
    rf"^{_ZH_SUBJECT}(?P<verb>是) ?(?P<y>(?:一|第|世界|全球|中国|美国|英国|法国|德国|欧洲|亚洲|位于)"
    r"[^，。；：！？“”（）]{3,40})(?=[，。；])"
)
_ZH_DONE = "成立|建立|建成|创立|创建|发布|出版|发行|出生|去世|逝世|诞生|落成|开业|通车|上映|创办|签署|颁布|建造|开放"
_ZH_DATE = r"(?:公元前?)?\d{1,4} ?年(?: ?\d{1,2} ?月(?: ?\d{1,2} ?日)?)?"
_ZH_WHEN = (
    re.compile(rf"^{_ZH_SUBJECT}(?P<did>{_ZH_DONE})于 ?(?P<y>{_ZH_DATE})"),
    re.compile(rf"^{_ZH_SUBJECT}[于在] ?(?P<y>{_ZH_DATE})(?P<did>{_ZH_DONE})(?=[，。；])"),
)
_ZH_WHERE = re.compile(rf"^{_ZH_SUBJECT}(?P<did>位于|坐落于|坐落在) ?(?P<y>[^，。；：！？、（）]{{2,24}})(?=[，。；])")
_ZH_HOW_MANY = re.compile(
    rf"^{_ZH_SUBJECT}(?:一共有|共有|拥有|设有|有)(?:大约|约|近|超过)? ?"
    r"(?P<y>\d[\d,，.]*\d|\d|[两二三四五六七八九十]+) ?"
    r"(?P<did>[个名所座条家位种部间岁][^，。；：！？、（）()的和]{1,8}|[万亿]?人口?)(?=[，。；、])"
)
_ZH_WHO = re.compile(
    rf"^{_ZH_SUBJECT}由(?P<y>[^，。；：！？、（）的于在]{{2,12}}?)(?P<did>创作|撰写|编写|执导|设计|创立|创办|发明|发现|建造)(?=[，。；])"
)


@dataclass(frozen=True)
class Fact:
    """What a sentence states.

    Attributes:
      kind: of the question: describe, when, where, who, how_many.
      asked: what fills the wording of the question.
      answer: as it stands in the sentence.
    """

    kind: str
    asked: str
    answer: str


def facts(sentence: str, language: Language, text: str = "") -> Iterator[Fact]:
    """The facts of a sentence.

    Args:
      text: around it: a word that stands there without its capital is no name.
    """
    yield from _english(sentence, text) if language == "en" else _chinese(sentence)


def _english(sentence: str, text: str) -> Iterator[Fact]:
    forms = (("when", _WHEN), ("where", _WHERE), ("who", _WHO), ("how_many", _HOW_MANY), ("describe", _IS))
    for kind, pattern in forms:
        found = pattern.match(sentence)
        if found is None or (subject := _subject(found["x"], text)) is None:
            continue
        answer = found["y"].strip().rstrip(",")
        if kind == "describe":
            if len(answer.split()) > 30 or re.search(r"\b(?:that|it|they|he|she)$", answer):
                continue
            yield Fact(kind, subject, answer)
        elif kind == "how_many":
            yield Fact(kind, f"{found['did']} {_DO[found['verb']].format(subject)}", answer)
        elif kind == "who":
            yield Fact(kind, f"{found['verb']} {subject} {found['did']} by", answer)
        else:
            yield Fact(kind, f"{found['verb']} {subject} {found['did']}", answer)
        return  # a sentence in one of these forms


def _subject(name: str, text: str) -> str | None:
    """The subject inside of a question, without the capital of its sentence. None: it names nothing by itself."""
    words = name.split()
    if not words or len(words) > 7 or words[0].lower() in _NO_SUBJECT:
        return None
    owner = re.fullmatch(r"[A-Z]\w{2,}['’]s", words[0]) if len(words) > 1 else None
    if not owner and ("'" in words[0] or "’" in words[0]) or words[0].lower() in ("let's", "let’s"):
        return None
    lower = [word.lower() for word in words]
    if {"that", "which", "who", "is", "are", "was", "were", "and", "if", "when", "we", "i"} & set(lower[1:]):
        return None
    if lower[-1] in _VAGUE or len(words) > 1 and lower[1] in _VAGUE:
        return None
    if lower[0] in _ARTICLE:
        if len(words) < 2:
            return None
        return " ".join([words[0].lower(), *words[1:]])
    if len(words) > 1 and not (owner or words[1][0].isupper() or words[0].isupper()):
        return None
    is_word = len(words) == 1 and re.search(rf"(?<!\w){re.escape(lower[0])}(?!\w)", text)
    return lower[0] if is_word else name


def _chinese(sentence: str) -> Iterator[Fact]:
    forms = [*(("when", each) for each in _ZH_WHEN), ("where", _ZH_WHERE), ("who", _ZH_WHO)]
    forms += [("how_many", _ZH_HOW_MANY), ("describe", _ZH_IS)]
    for kind, pattern in forms:
        found = pattern.match(sentence)
        if found is None or _ZH_BAD.search(found["x"]):
            continue
        subject, answer = found["x"], found["y"].strip()
        if kind == "describe":
            yield Fact(kind, subject, answer)
        elif kind == "when":
            yield Fact(kind, f"{subject}是什么时候{found['did']}的", answer)
        elif kind == "where":
            yield Fact(kind, f"{subject}{found['did']}哪里", answer)
        elif kind == "how_many":
            yield Fact(kind, f"{subject}有多少{found['did']}", answer)
        else:
            yield Fact(kind, f"{subject}是由谁{found['did']}的", answer)
        return
