"""Items of a catalogue: `/recommend`, and `/catalogue` to find titles and facts."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field

from instructrec_jax.answering import requests
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.picture_references import NO_FILES
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.models import Service
from instructrec_jax.service.routes.parts import Asked, Hidden, Noted, Running, in_time, of_size
from instructrec_jax.service.scenarios import Recommended, Recommending, Wishes

router = APIRouter(tags=["items"])


class Wish(Asked):
    """One request, as a line of `python -m instructrec_jax.recommend --input`."""

    user: str | None = None
    history: str | list[str] = Field(default_factory=list)
    instruction: str = ""
    prompt: str = ""
    image: str | None = Field(None, description="a picture as base64 or a data URI: items that look like it")
    exclude: str | list[str] = Field(default_factory=list)
    where: str | list[str] = Field(default_factory=list)
    k: int | None = None
    id: Any = None


class RecommendRequest(Wish):
    """One request, or several in `requests`; the options hold for all of them. `exact`: the same bits whoever asks."""

    requests: list[Wish] | None = None
    model: str | None = None
    include_seen: bool = False
    on_unknown: Literal["error", "skip"] = "error"
    evidence: bool = True
    exact: bool = False


@router.post("/recommend")
async def recommend(
    asked: RecommendRequest, request: Request, service: Running, noted: Noted, hidden: Hidden
) -> dict[str, object]:
    """The best items for a history, an instruction or both, with the evidence for each, as
    `python -m instructrec_jax.recommend`. One request gets `recommendations`, several get `data`, in their order."""
    fields = set(Wish.model_fields)
    wishes = [asked.model_dump(include=fields)]
    if asked.requests is not None:
        if both := sorted(fields & asked.model_fields_set - {"k"}):
            raise ServiceError(
                422, f"{both[0]} stands beside requests: put it into each of them.", param=both[0], code="invalid"
            )
        of_size(asked.requests, "requests", "requests", service.config.limits.texts, "limits.texts")
        wishes = [{"k": asked.k} | each.model_dump(exclude_unset=True) for each in asked.requests]
    model = service.model(asked.model, "recommend", noted)
    texts = await hidden.mask([[wish.get("instruction", ""), wish.get("prompt", "")] for wish in wishes])
    own = [
        requests.Request(**{**wish, "instruction": instruction, "prompt": prompt, "image": _image(wish)})
        for wish, (instruction, prompt) in zip(wishes, texts, strict=True)
    ]
    options = Wishes(own, asked.include_seen, asked.on_unknown == "skip", asked.evidence)
    answer = model.ask("recommend", options, size=len(own), alone=asked.exact)
    found: Recommended = await in_time(service, request, answer)
    records = hidden.restore([each.to_record() for each in found.answers])
    items = sum(len(each.recommendations) for each in found.answers)
    noted.counts.update(texts=len(own), items=items, prompt_tokens=found.tokens)
    for each in found.answers:
        if each.prompt:  # none for a picture alone
            service.drift(model).answered(each.prompt)
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    said = {"data": records} if asked.requests is not None else records[0]
    return {"object": "recommendations", "model": model.name, **said, "usage": usage}


def _image(wish: dict[str, Any]) -> Picture | None:
    try:
        return requests.read_image(wish.get("image"), NO_FILES)
    except ValueError as error:
        raise ServiceError(422, str(error), param="image", code="invalid") from error


@router.get("/catalogue")
async def catalogue(
    service: Running,
    noted: Noted,
    query: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    model: str | None = None,
) -> dict[str, object]:
    """Items whose titles continue what was typed: at the title's start, at a word's start, then anywhere."""
    name, recommending = _recommending(service, model, noted)
    data = recommending.titles(query, limit)
    noted.counts.update(items=len(data))
    return {"object": "list", "model": name, "data": data}


@router.get("/catalogue/facts")
async def facts(service: Running, noted: Noted, model: str | None = None) -> dict[str, object]:
    """The facts that `where` may use, such as genre=Horror or year>1990: numbers with their range, others with their
    most frequent values."""
    name, recommending = _recommending(service, model, noted)
    return {"object": "list", "model": name, "items": recommending.items, "data": recommending.facts}


def _recommending(service: Service, name: str | None, noted: Exchange) -> tuple[str, Recommending]:
    model = service.model(name, "recommend", noted)
    recommending = model.answerers["recommend"]
    assert isinstance(recommending, Recommending)
    return model.name, recommending
