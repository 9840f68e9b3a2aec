"""Vectors of texts, and documents ranked by a query: `/v1/embeddings` and `/rerank`."""

import base64
from typing import Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from instructrec_jax.data.example import BadExample
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.picture_references import NO_FILES, read_pictures
from instructrec_jax.service.answerers import Documents, Ranked, Vectors
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.pictures import SEND, bad_picture, check_pictures
from instructrec_jax.service.routes.parts import Asked, Hidden, Noted, Running, in_time, of_size

router = APIRouter(tags=["vectors"])

Tokens = list[int] | list[list[int]]


class ImageInput(Asked):
    """A picture as a data URI, `data:image/png;base64,...`."""

    image: str


class EmbeddingRequest(Asked):
    """As in OpenAI's API, with `exact`: the same bits whoever else asks.

    A picture is `{"image": "data:image/png;base64,..."}` in place of a text.
    """

    input: str | ImageInput | list[str | ImageInput] | Tokens
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    exact: bool = False


@router.post("/v1/embeddings")
async def embeddings(
    asked: EmbeddingRequest, request: Request, service: Running, noted: Noted, hidden: Hidden
) -> dict[str, object]:
    """One vector for each text or picture, as `Run.encode`. A text that is longer than the model reads is cut at its
    end, as sentence-transformers does."""
    given = _given(asked)
    of_size(given, "input", "texts", service.config.limits.texts, "limits.texts")
    check_pictures([each.image for each in given if isinstance(each, ImageInput)], service.config.limits, "input")
    model = service.model(asked.model, "embed", noted)
    pictures = {number: _picture(each, number) for number, each in enumerate(given) if isinstance(each, ImageInput)}
    texts = await hidden.mask([each for each in given if isinstance(each, str)])
    left = iter(texts)
    both = [pictures[number] if number in pictures else next(left) for number in range(len(given))]
    answer = model.ask("embed", both, size=len(both), alone=asked.exact)
    found: Vectors = await in_time(service, request, answer)
    width = found.vectors.shape[1]
    if asked.dimensions not in (None, width):
        raise ServiceError(
            422,
            f"dimensions is {asked.dimensions}, but the vectors of {model.name!r} have {width}, no fewer: "
            "leave it out.",
            param="dimensions",
            code="unsupported",
        )
    noted.counts.update(texts=len(both), prompt_tokens=found.tokens)
    if model.abilities <= {"embed", "rerank"}:  # else these texts are not what its run was evaluated on
        for text in texts:
            service.drift(model).answered(text)
    data = [
        {"object": "embedding", "index": number, "embedding": _shown(vector, asked.encoding_format)}
        for number, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return {"object": "list", "model": model.name, "data": data, "usage": usage}


def _given(asked: EmbeddingRequest) -> list[str | ImageInput]:
    given = asked.input if isinstance(asked.input, list) else [asked.input]
    found = [each for each in given if isinstance(each, str | ImageInput)]
    if len(found) < len(given):
        raise ServiceError(
            422, "input has tokens, but this service takes texts: send the texts.", param="input", code="unsupported"
        )
    return found


def _picture(each: ImageInput, number: int) -> Picture:
    name = f"input[{number}].image"
    try:
        found = read_pictures(each.image, NO_FILES, name)
    except BadExample as error:
        raise bad_picture(error) from None
    if not found:
        raise ServiceError(422, f"{name}: {SEND}", param=name, code="invalid")
    return found[0]


def _shown(vector: np.ndarray, form: str) -> object:
    return vector.tolist() if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()


class Document(BaseModel):
    """A document as an object; fields beside its text are returned with it."""

    model_config = ConfigDict(extra="allow", strict=True)

    text: str


class RerankRequest(Asked):
    """As in the APIs of Cohere and Jina, with `exact`: the same bits whoever else asks."""

    query: str
    documents: list[str | Document]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool = False
    user: str | None = None
    exact: bool = False


@router.post("/rerank")
@router.post("/v1/rerank")
async def rerank(
    asked: RerankRequest, request: Request, service: Running, noted: Noted, hidden: Hidden
) -> dict[str, object]:
    """The documents, the most relevant first; of equal ones, the earlier first.

    `relevance_score` is, of a reranker: the logistic function of its score, from 0 to 1; of a model for vectors: the
    cosine of the document's vector with the query's, from -1 to 1; of a language model that chooses: the probability
    of the document among all of them.
    """
    limits = service.config.limits
    of_size(asked.documents, "documents", "documents", limits.candidates, "limits.candidates")
    if asked.top_n is not None and asked.top_n < 1:
        raise ServiceError(422, f"top_n is {asked.top_n}, but must be at least 1.", param="top_n", code="invalid")
    model = service.model(asked.model, "rerank", noted)
    texts = [each if isinstance(each, str) else each.text for each in asked.documents]
    query, *texts = await hidden.mask([asked.query, *texts])
    answer = model.ask("rerank", Documents(query, texts), size=len(texts), alone=asked.exact)
    found: Ranked = await in_time(service, request, answer)
    noted.counts.update(texts=len(texts), prompt_tokens=found.tokens)
    results = []
    for number in np.argsort(-found.scores, kind="stable")[: asked.top_n].tolist():
        given = asked.documents[number]
        document = {"text": given} if isinstance(given, str) else given.model_dump()
        result = {"index": number, "relevance_score": float(found.scores[number])}
        results.append(result | ({"document": document} if asked.return_documents else {}))
    return {"model": model.name, "results": results, "usage": {"total_tokens": found.tokens}}
