"""Vectors of texts: `/v1/embeddings`."""

import asyncio
import base64
from typing import Literal

import numpy as np
from fastapi import APIRouter, Request

from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.routes.parts import Asked, Noted, Running, in_time

router = APIRouter(tags=["vectors"])


class EmbeddingRequest(Asked):
    """As in OpenAI's API, with `exact`: the same bits whoever else asks."""

    input: str | list[str]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
    exact: bool = False


@router.post("/v1/embeddings")
async def embeddings(asked: EmbeddingRequest, request: Request, service: Running, noted: Noted) -> dict[str, object]:
    """One vector for each text."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    most = service.config.limits.texts
    if not 1 <= len(texts) <= most:
        raise ServiceError(422, f"input has {len(texts):,} texts; there may be 1 to {most:,} (limits.texts).")
    model = service.model(asked.model, "embed")
    noted.model = model.name
    noted.counts["texts"] += len(texts)
    each = asyncio.gather(*(model.texts.ask(text, alone=asked.exact) for text in texts))
    vectors = await in_time(service, request, each)
    for text in texts:
        service.drift(model).add(**service.drift(model).measured(text))
    shown = [_shown(vector, asked.encoding_format) for vector in vectors]
    data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(shown)]
    return {"object": "list", "model": model.name, "data": data, "usage": {"prompt_tokens": 0, "total_tokens": 0}}


def _shown(vector: np.ndarray, form: str) -> object:
    return vector.tolist() if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
