"""Texts in English and Chinese for the tests of `synthesis`, and random ones."""

import random

TOWN = (
    "Freiburg is a university town in the south of Germany. The university was founded in 1457 and has about 25,000 "
    "students today. It has a library with a large collection of maps. The town lies at the edge of the Black Forest, "
    "which begins in the east. Many visitors come from France and from Basel to see the cathedral. The cathedral was "
    "built by masters from Prague over three hundred years."
)
RIVER = (
    "长江是亚洲第一长的河流。它发源于青藏高原，全长约6300公里，流经11个省市。武汉长江大桥建成于1957年，是长江上的第一座大桥。"
    "宜昌位于长江中游，三峡大坝就在那里。人们常常读《三国演义》来了解这里的历史。因此每年有很多游客来到宜昌，参观三峡大坝。"
)
WORDS = (
    "the a of in is was town river built founded Paris Rome 1999 12 not It However, however large cathedral students "
    'university 😀 👨‍👩‍👧 é “quoted” (open "half U.S. Dr. e.g. 3.5 1,000 ____ \t tab'
).split(" ")
CHINESE = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能"
PUNCTUATION = ["。", "，", "！", "？", "“", "”", "《", "》", "1957年", "12", "\n", " ", "是", "位于", "AI"]


def random_text(rng: random.Random) -> str:
    """Words of both languages, marks, emoji and white space, in sentences or not."""
    chinese = rng.random() < 0.4
    pieces: list[str] = []
    for _ in range(rng.randrange(120)):
        if chinese:
            pieces.append(rng.choice(PUNCTUATION) if rng.random() < 0.2 else rng.choice(CHINESE))
        else:
            word = rng.choice(WORDS)
            pieces.append(word + rng.choice(["", "", "", ",", ".", ".", "!", "?", ";"]) + rng.choice([" ", " ", "\n"]))
    return "".join(pieces) if rng.random() < 0.9 else "".join(pieces) + rng.choice([TOWN, RIVER])
