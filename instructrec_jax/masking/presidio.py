"""Names and places by Microsoft Presidio (an extra), which brings its own language models."""

from collections.abc import Callable, Sequence

from instructrec_jax.extras import require
from instructrec_jax.masking.spans import Span

ENTITIES = {"PERSON": "person", "LOCATION": "place", "NRP": "group", "ORGANIZATION": "organization"}


def presidio_tagger(language: str) -> Callable[[str], Sequence[Span]]:
    """A tagger of persons, places and groups.

    Args:
      language: code of a language whose spaCy model is installed, such as en.

    Raises:
      ValueError: Presidio is not installed.
    """
    require("presidio_analyzer", f"masking.presidio: {language}")
    from presidio_analyzer import AnalyzerEngine  # an extra

    engine = AnalyzerEngine(supported_languages=[language])
    known = [name for name in ENTITIES if name in engine.get_supported_entities(language)]

    def tagged(text: str) -> list[Span]:
        found = engine.analyze(text, language=language, entities=known)
        return [Span(each.start, each.end, ENTITIES[each.entity_type]) for each in found if each.end > each.start]

    return tagged
