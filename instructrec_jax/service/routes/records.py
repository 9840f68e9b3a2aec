"""Predictions for texts and records, a desk's replies, and a watched stream: `/classify`, `/assist` and `/watch`."""

from typing import Any

from fastapi import APIRouter, Request

from instructrec_jax.answering.desk import Answered
from instructrec_jax.service.answerers import Predicted
from instructrec_jax.service.pictures import check_pictures
from instructrec_jax.service.routes.parts import Asked, Hidden, Noted, Running, in_time, of_size
from instructrec_jax.service.scenarios import Assisting, Watched, Watching

router = APIRouter(tags=["records"])

Record = dict[str, Any]


class ClassifyRequest(Asked):
    """A text (for the only column that the run reads), a record with the columns of the run's data, or a list.

    A picture is a data URI in its column: `{"image": "data:image/png;base64,..."}`.
    """

    input: str | Record | list[str | Record]
    model: str | None = None
    exact: bool = False


@router.post("/classify")
async def classify(
    asked: ClassifyRequest, request: Request, service: Running, noted: Noted, hidden: Hidden
) -> dict[str, object]:
    """What the run predicts for each record, as `python -m instructrec_jax.predict` writes it: a label or labels with
    probabilities, a number, a tag for each word, an answer with its place in the context ..."""
    records = asked.input if isinstance(asked.input, list) else [asked.input]
    of_size(records, "input", "records", service.config.limits.texts, "limits.texts")
    check_pictures(records, service.config.limits, "input")
    model = service.model(asked.model, "classify", noted)
    records = await hidden.mask(records)
    answer = model.ask("classify", records, size=len(records), alone=asked.exact)
    found: Predicted = await in_time(service, request, answer)
    noted.counts.update(texts=len(records), prompt_tokens=found.tokens)
    for prompt, said in zip(found.prompts, found.answers, strict=True):
        service.drift(model).answered(prompt, said)
    data = [{"index": number, **hidden.answer(each)} for number, each in enumerate(found.answers)]
    return {"object": "list", "model": model.name, "task": model.run.kind, "data": data, "usage": _usage(found.tokens)}


class AssistRequest(Asked):
    """A customer's request, or a list of them."""

    input: str | list[str]
    model: str | None = None
    exact: bool = False


@router.post("/assist")
async def assist(
    asked: AssistRequest, request: Request, service: Running, noted: Noted, hidden: Hidden
) -> dict[str, object]:
    """The intent, slots, action and reply for each text, as `python -m instructrec_jax.assist`."""
    texts = asked.input if isinstance(asked.input, list) else [asked.input]
    of_size(texts, "input", "texts", service.config.limits.texts, "limits.texts")
    model = service.model(asked.model, "assist", noted)
    texts = await hidden.mask(texts)
    answer = model.ask("assist", texts, size=len(texts), alone=asked.exact)
    found: list[Answered] = await in_time(service, request, answer)
    noted.counts.update(texts=len(texts))
    assisting = model.answerers["assist"]
    assert isinstance(assisting, Assisting)
    for each in found:
        said = {"prediction": each["intent"], "probability": each["confidence"]}
        service.drift(model).answered(assisting.desk.classifier.prompt(each["text"]), said)
    return {"object": "list", "model": model.name, "data": hidden.restore(found)}


class WatchRequest(Asked):
    """A record with text, entity and time (ISO 8601, or seconds since 1970), or a list of them, oldest first."""

    input: Record | list[Record]
    model: str | None = None


@router.post("/watch")
async def watch(
    asked: WatchRequest, request: Request, service: Running, noted: Noted, hidden: Hidden
) -> dict[str, object]:
    """Adds records to the windows of their entities: their labels, the entities' scores, and the alerts raised, as
    `python -m instructrec_jax.watch`.

    The windows live in this process: they begin empty when it starts, and several replicas of the service have windows
    of their own, so that an entity's records have to go to the same one. A request with a bad record, or one that is
    older than its entity's last, changes no window.
    """
    records = asked.input if isinstance(asked.input, list) else [asked.input]
    of_size(records, "input", "records", service.config.limits.texts, "limits.texts")
    model = service.model(asked.model, "watch", noted)
    texts = await hidden.mask([record.get("text") for record in records])
    records = [
        {**record, "text": text} if "text" in record else record for record, text in zip(records, texts, strict=True)
    ]
    found: Watched = await in_time(service, request, model.ask("watch", records, size=len(records)))
    noted.counts.update(texts=len(records), alerts=len(found.alerts), prompt_tokens=found.tokens)
    watching = model.answerers["watch"]
    assert isinstance(watching, Watching)
    for each in found.records:
        said = {"prediction": each["label"], "probabilities": each["probabilities"]}
        service.drift(model).answered(watching.classifier.prompt(str(each["text"])), said)
    return {
        "object": "list",
        "model": model.name,
        "data": hidden.restore(found.records),
        "alerts": hidden.restore(found.alerts),
        "usage": _usage(found.tokens),
    }


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
