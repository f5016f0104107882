"""The one model that is served, under the name that a setting gives it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from raylla.serving.http.openai.faults import OpenAiRoute
from raylla.serving.http.web import HttpError, errors


def router(name: str) -> APIRouter:
    """`GET /v1/models`, and each by its id, which may hold slashes."""
    made = APIRouter(tags=["answers"], route_class=OpenAiRoute)
    served = {"id": name, "object": "model", "created": 0, "owned_by": "raylla"}

    @made.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model, as OpenAI's clients list it."""
        return {"object": "list", "data": [served]}

    @made.get("/v1/models/{model:path}", responses=errors(400, 404))
    async def model(model: str) -> dict[str, Any]:
        """A model by its id."""
        check_model(model, name)
        return served

    return made


def check_model(asked: str | None, served: str) -> None:
    """Refuse a model that is not served; none means the one that is.

    Raises:
        HttpError: 404.
    """
    if asked is not None and asked != served:
        raise HttpError(
            404,
            "model_not_found",
            f"the model {asked!r} does not exist; this endpoint serves {served!r}",
            param="model",
        )
