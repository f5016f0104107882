"""What POST /v1/responses takes and gives: OpenAI's objects, and the auction's beside them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from raylla.records import Turn
from raylla.serving.http.openai.bodies import AuctionDetail, Int, Parameters, UrlCitation

ResponseId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]


class Item(BaseModel):
    """A message, or another item of a conversation, which is passed over with a note."""

    model_config = ConfigDict(extra="allow")
    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[dict[str, Any]] | None = None


class ResponseStreamOptions(BaseModel):
    """Of a streamed response; events are never padded."""

    model_config = ConfigDict(extra="forbid")
    include_obfuscation: bool | None = Field(None, description="changes nothing")


class ResponseRequest(Parameters):
    """A request of OpenAI's Responses API; what it asks that is not done is refused, never ignored."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": "raylla",
                    "input": "which mug keeps tea warm?",
                    "raylla": {"profile": {"id": "u1", "basics": "34 nurse Oslo", "interests": ["mugs"]}},
                }
            ]
        },
    )
    HONOURED: ClassVar[frozenset[str]] = frozenset({"store"})

    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: ResponseId | None = None
    max_output_tokens: Annotated[Int, Field(ge=1)] | None = None
    stream_options: ResponseStreamOptions | None = None
    background: bool | None = None
    truncation: str | None = None
    text: Any = None
    reasoning: Any = None
    include: list[str] | None = None
    conversation: Any = None
    prompt: Any = None
    max_tool_calls: Int | None = None


class ResponseCitation(UrlCitation):
    """One placed ad."""

    type: Literal["url_citation"] = "url_citation"


class OutputText(BaseModel):
    """The text, and the ads in it."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[ResponseCitation]
    logprobs: list[Any] = []


class OutputMessage(BaseModel):
    """The answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class ResponseBody(BaseModel):
    """An OpenAI response with the auction beside it; it has OpenAI's other fields, too."""

    model_config = ConfigDict(extra="allow")
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[OutputMessage]
    previous_response_id: str | None
    metadata: dict[str, str]
    raylla: AuctionDetail | None = None


class InputItem(BaseModel):
    """A turn that a response was asked with."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["system", "user", "assistant"]
    status: Literal["completed"] = "completed"
    content: list[dict[str, Any]]

    @classmethod
    def of(cls, id: str, turn: Turn) -> InputItem:
        """A turn in OpenAI's form."""
        part: dict[str, Any] = {"type": "input_text", "text": turn.text}
        if turn.role == "assistant":
            part = {"type": "output_text", "text": turn.text, "annotations": [], "logprobs": []}
        return cls(id=id, role=turn.role, content=[part])


class InputItems(BaseModel):
    """Some of the turns that a response was asked with; ``last_id`` is the ``after`` of the next."""

    object: Literal["list"] = "list"
    data: list[InputItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A response that is gone."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True
