"""What POST /v1/chat/completions takes and gives: OpenAI's objects, and the auction's beside them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from raylla.config import Links


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("give a number")
    return value


NoFlag = BeforeValidator(_no_flag)
"""Of a number: `true` is none, and not 1."""
Int = Annotated[int, NoFlag]
Float = Annotated[float, NoFlag]
Short = Annotated[str, Field(max_length=100)]
UserId = Annotated[str, Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Who asks; "" is nobody in particular."""
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class Message(BaseModel):
    """One turn of the conversation; parts and fields that are no text are passed over, with a note."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None


class Spoken(BaseModel):
    """An object of which a field that is null is one that was left out, as in OpenAI's own."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, said: Any) -> Any:
        if isinstance(said, dict):
            return {
                name: value
                for name, value in said.items()
                if value is not None or name not in cls.model_fields
            }
        return said


class User(Spoken):
    """Who asks: what the mechanism may know about the user."""

    id: UserId | None = None
    basics: str = ""
    interests: Annotated[list[Short], Field(max_length=20)] = []


class Extras(Spoken):
    """What an application may say about the auction (`extra_body={"raylla": ...}` of the client)."""

    ads: bool = Field(True, description="false: the answer without ads, and no auction")
    profile: User | None = None
    floor_micros: Annotated[Int, Field(ge=0, le=10**15)] = Field(0, description="least bid per click")
    bcat: Annotated[list[Short], Field(max_length=1000)] = Field([], description="blocked categories")
    badv: Annotated[list[Annotated[str, Field(max_length=254)]], Field(max_length=1000)] = Field(
        [], description="blocked advertisers, by id or domain"
    )
    links: Links | None = Field(
        None,
        description="click URLs beside the text (`annotations`), as Markdown links in it, or both; "
        "left out: as the API key says, else `serving.links`",
    )
    test: bool = Field(False, description="a test auction: its clicks are never charged")
    bids: Annotated[dict[str, Annotated[Int, Field(ge=1, le=10**15)]], Field(max_length=1000)] = Field(
        {}, description="with `test`: other bids in micros for these ads, by ad id"
    )


class StreamOptions(BaseModel):
    """Of a streamed answer; chunks are never padded."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool | None = False
    include_obfuscation: bool | None = Field(None, description="changes nothing")


class Parameters(BaseModel):
    """Parameters that every kind of request may have; docs/serving.md says what becomes of each."""

    model_config = ConfigDict(extra="forbid")
    HONOURED: ClassVar[frozenset[str]] = frozenset()
    """Fields that this kind of request honours, which others take at one value only."""

    model: Annotated[str, Field(max_length=200)] | None = None
    stream: bool | None = False
    user: UserId | None = None
    safety_identifier: UserId | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    temperature: Annotated[Float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Float, Field(gt=0, le=1)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = Field(None, description="changes nothing")
    top_logprobs: Int | None = None
    service_tier: str | None = Field(None, description="changes nothing")
    prompt_cache_key: str | None = Field(None, description="changes nothing")
    prompt_cache_retention: str | None = Field(None, description="changes nothing")
    moderation: Any = None
    raylla: Extras | None = None

    @property
    def extras(self) -> Extras:
        """What is said about the auction."""
        return self.raylla or Extras()


class ChatRequest(Parameters):
    """An OpenAI chat completion request; what it asks that is not done is refused, never ignored."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": "raylla",
                    "messages": [{"role": "user", "content": "which mug keeps tea warm?"}],
                    "raylla": {
                        "profile": {"id": "u1", "basics": "34 nurse Oslo", "interests": ["mugs"]},
                        "bcat": ["casinos"],
                    },
                }
            ]
        },
    )
    messages: Annotated[list[Message], Field(min_length=1)]
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[Int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Int, Field(ge=1)] | None = None
    n: Annotated[Int, Field(ge=1)] | None = 1
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: Annotated[Int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Annotated[Float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Float] | None = None
    response_format: Any = None
    logprobs: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None


class UrlCitation(BaseModel):
    """Where a placed ad stands in the text (its title, or the whole link), and where a click goes."""

    start_index: int
    end_index: int
    url: str
    title: str


class Annotation(BaseModel):
    """One placed ad."""

    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation


class AdDetail(BaseModel):
    """The auction's word on one placed ad; money in micros, `ctr` with its interval."""

    ad_id: str
    impid: str
    seat: str
    bid_micros: int
    price_micros: int
    ctr: float
    ctr_low: float
    ctr_high: float
    disclosure: str
    adomain: list[str]
    cat: list[str]


class CandidateDetail(BaseModel):
    """An ad that the prompt listed, and the bid that the model read."""

    ad_id: str
    title: str
    category: str
    bid_micros: int


class AuctionDetail(BaseModel):
    """The auction behind an answer, in OpenRTB's names where there are any."""

    auction_id: str | None
    weight_version: str
    pctr_version: str | None = None
    price_rule: str | None = None
    at: int | None = None
    cur: str | None = None
    ads: list[AdDetail] = []
    filtered: dict[str, int] = {}
    violations: dict[str, int] = {}
    candidates: list[CandidateDetail] | None = Field(None, description="of a test auction, as prompted")
    turns_cut: int = Field(0, description="the oldest turns, which found no room in the prompt")
    notes: list[str] = Field([], description="what of the messages was passed over")


class Reply(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    annotations: list[Annotation] = []


class ReplyChoice(BaseModel):
    """The one choice."""

    index: int = 0
    message: Reply
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens of the one generation."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(BaseModel):
    """An OpenAI chat completion with the auction beside it."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ReplyChoice]
    usage: Usage
    metadata: dict[str, str] | None = None
    raylla: AuctionDetail
