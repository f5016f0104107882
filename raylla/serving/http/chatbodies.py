"""What POST /v1/chat/completions takes and gives: OpenAI's objects, and the auction's beside them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from raylla.config import Links

Short = Annotated[str, Field(max_length=100)]
UserId = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Part(BaseModel):
    """One part of a message; only text can be answered."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None

    def words(self) -> str:
        """The text of all parts."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class User(BaseModel):
    """Who asks: what the mechanism may know about the user."""

    model_config = ConfigDict(extra="forbid")
    id: UserId | None = None
    basics: str = ""
    interests: Annotated[list[Short], Field(max_length=20)] = []


class Extras(BaseModel):
    """What an application may say about the auction (`extra_body={"raylla": ...}` of the client)."""

    model_config = ConfigDict(extra="forbid")
    ads: bool = Field(True, description="false: the answer without ads, and no auction")
    profile: User = User()
    floor_micros: Annotated[int, Field(ge=0, le=10**15)] = Field(0, description="least bid per click")
    bcat: Annotated[list[Short], Field(max_length=1000)] = Field([], description="blocked categories")
    badv: Annotated[list[Short], Field(max_length=1000)] = Field(
        [], description="blocked advertisers, by id or domain"
    )
    links: Links | None = Field(
        None,
        description="click URLs beside the text (`annotations`), as Markdown links in it, or both; "
        "left out: as the API key says, else `serving.links`",
    )
    test: bool = Field(False, description="a test auction: its clicks are never charged")
    bids: Annotated[dict[str, Annotated[int, Field(ge=1, le=10**15)]], Field(max_length=1000)] = Field(
        {}, description="with `test`: other bids in micros for these ads, by ad id"
    )


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """An OpenAI chat completion request; other fields of OpenAI's are accepted and have no effect."""

    model_config = ConfigDict(
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
        }
    )
    model: Annotated[str, Field(max_length=200)] = "raylla"
    messages: Annotated[list[Message], Field(min_length=1, max_length=200)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = 1
    user: UserId | None = None
    raylla: Extras = Extras()


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
    raylla: AuctionDetail
