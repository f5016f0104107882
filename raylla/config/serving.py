"""The sections of the endpoint: `raylla serve`."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from raylla.config.sections import NonNegative, Positive, Seconds, Section
from raylla.wholetext import visible

Links = Literal["annotations", "markdown", "both"]
"""How an answer carries its click URLs: beside the text, as Markdown links in it, or both."""
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


class Replicas(Section):
    """How many replicas a deployment runs, and what each reserves."""

    min_replicas: Positive = Field(1, description="replicas that are there all the time")
    max_replicas: Positive = Field(1, description="replicas under load")
    target_ongoing: Annotated[float, Field(gt=0)] = Field(
        16, description="requests in flight per replica that autoscaling aims at"
    )
    cpus: Annotated[float, Field(ge=0)] = Field(0.25, description="CPUs that each one reserves")
    gpus: Annotated[float, Field(ge=0)] = Field(0, description="GPUs that each one reserves")

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} exceeds max_replicas={self.max_replicas}; "
                "lower the first or raise the second"
            )
        return self


class Serving(Section):
    """`raylla serve`: the auction endpoint. Money is in micros, millionths of the currency."""

    run: str | None = Field(None, description="run, a path or URL, whose weights and pCTR model are served")
    version: str | None = Field(None, description="weight version; none: the run's last")
    database: str = Field(
        "sqlite:///runs/serving/raylla.db", description="SQLAlchemy URL; postgresql+psycopg://... too"
    )
    host: str = Field("127.0.0.1", description="address to listen at; 0.0.0.0: every one")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port to listen at")
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = Field("USD", description="of all money")
    micros_per_unit: Annotated[int, Field(ge=1, le=10**9)] = Field(
        10_000, description="what one unit of the model's bids is worth; bids are whole multiples of it"
    )
    price_rule: Literal["first_price", "expected", "resampled", "reserve"] = Field(
        "first_price",
        description="the bid per click; bid x pCTR per impression; the truthful price, settled in sums; or "
        "learned prices above learned reserves, per click",
    )
    prices: Path | None = Field(
        None, description="price sheet of `raylla prices learn`, which the rule `reserve` charges by"
    )
    prices_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 that the sheet must have; none: whatever it has when it is served"
    )
    resample_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="mu: share of bids that the rule `resampled` replaces"
    )
    candidates: Positive | None = Field(None, description="ads in the prompt; none: world.candidates")
    floor_micros: Annotated[int, Field(ge=0, le=10**15)] = Field(
        0, description="least bid per click, for all requests"
    )
    disclosure: Annotated[str, Field(min_length=1, max_length=40)] = Field(
        "Sponsored", description="label that the user sees after each placed ad"
    )
    links: Links = Field(
        "annotations",
        description="how answers carry click URLs, where neither request nor key says: beside the text, "
        "as Markdown links in it, or both",
    )
    token_ttl: Seconds = Field(86_400, description="how long a click token charges")
    click_least_seconds: NonNegative = Field(
        0, description="a click sooner than this after its ad was seen is kept as invalid; 0: none is"
    )
    clicks_per_user_hour: Positive | None = Field(
        None, description="a user's clicks beyond this many within an hour are kept as invalid; none: any"
    )
    tmax: Seconds = Field(30, description="longest time of one auction; then 503 with Retry-After")
    max_ongoing: Positive = Field(
        64, description="requests in progress per ingress replica; more get 503 with Retry-After"
    )
    model_name: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        "raylla", description="what clients call the model; others do not exist"
    )
    requests_per_minute: Positive | None = Field(
        None, description="of each API key, by replica; none: no limit"
    )
    tokens_per_minute: Positive | None = Field(
        None, description="read and written for each API key, by replica; none: no limit"
    )
    longest_query: Positive = Field(2000, description="characters of a question, and of a profile's basics")
    largest_body: Positive = Field(256 * 2**10, description="bytes of a request's body")
    largest_upload: Positive = Field(64 * 2**20, description="bytes of a table of ads that is uploaded")
    public_url: str | None = Field(
        None, description="where users reach the endpoint, for click URLs; none: as the request's Host says"
    )
    trusted_proxies: tuple[str, ...] = Field(
        (),
        description="networks whose X-Forwarded-Proto and -Host click URLs follow; none: nobody's",
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="origins (https://app.example) whose pages may call the endpoint; `*`: any"
    )
    colocate: bool = Field(
        True,
        description="engine and pCTR model live in the ingress replica (fewest hops); false: in "
        "deployments of their own, which fail, restart and scale apart from it",
    )
    adapters: Literal["merged", "shared"] = Field(
        "merged",
        description="how versions of a run with lora are served: merged with the base, each as whole "
        "weights of an engine of its own; or as adapters that share one engine and its base",
    )
    organic: Literal["served", "untouched"] = Field(
        "served",
        description="who answers without ads: the version that serves, or the model below all adapters, "
        "which adapters: shared keeps",
    )
    refresh: Seconds = Field(1, description="between two looks at budgets and catalogue")
    filtered_logged: Annotated[int, Field(ge=0)] = Field(
        100, description="ads filtered out that an auction's record names; it counts all"
    )
    notice_deadline: Seconds = Field(3600, description="how long a billing notice is retried")
    traces: str | None = Field(
        None, description="OTLP/HTTP collector that gets traces (http://collector:4318); none: nobody does"
    )
    private_notices: bool = Field(
        False, description="billing notices may go to private and loopback addresses"
    )
    ingress: Replicas = Replicas()
    engine: Replicas = Replicas()
    predictor: Replicas = Replicas()

    @model_validator(mode="after")
    def _priced(self) -> Serving:
        if self.price_rule == "reserve" and self.prices is None:
            raise ValueError(
                "price_rule: reserve charges by a price sheet; set prices to one of `raylla prices learn`"
            )
        return self

    @model_validator(mode="after")
    def _kept(self) -> Serving:
        if self.organic == "untouched" and self.adapters == "merged":
            raise ValueError(
                "organic: untouched needs the base beside what serves; set adapters: shared, which keeps it"
            )
        return self

    @field_validator("disclosure")
    @classmethod
    def _seen(cls, given: str) -> str:
        if not given.isprintable() or not visible(given):
            raise ValueError("users must see it: give a word on one line")
        return given

    @field_validator("public_url", "traces")
    @classmethod
    def _web(cls, given: str | None, about: ValidationInfo) -> str | None:
        if given is not None:
            try:
                parts = urlsplit(given)
                fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            except ValueError:
                fine = False
            if not fine or not given.isprintable() or " " in given:
                usual = (
                    "https://ads.example, where users reach the endpoint"
                    if about.field_name == "public_url"
                    else "http://localhost:4318, where a collector takes OTLP over HTTP"
                )
                raise ValueError(f"give a URL such as {usual}")
        return given

    @field_validator("traces")
    @classmethod
    def _plain(cls, given: str | None) -> str | None:
        if given is not None and not {"@", "?", "#"}.isdisjoint(given):
            raise ValueError(
                "give scheme, host, port and path alone; a collector's credentials go into "
                "OTEL_EXPORTER_OTLP_HEADERS in the replicas' environment"
            )
        return given

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for network in given:
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(f"{error}; give networks such as 10.0.0.0/8 or addresses") from None
        return given

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for origin in given:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; give scheme and host in lower case, "
                    "such as https://app.example, without a path, or *"
                )
        return given
