"""One strict tree of settings: the only home of defaults. Imports no torch, ray or vllm.

A config file is a thin YAML overlay over these defaults; `--set a.b=c` overrides one value.
Unknown keys are errors that name the nearest valid key.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from raylla.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Labels = Annotated[
    dict[str, str], Field(description="Ray labels that a node must have to take them; none: any node")
]


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class World(Section):
    """Profiles, ads and queries."""

    path: Path | None = Field(None, description="directory of an imported world; none: synthetic")
    profiles: Positive = Field(120, description="users of the synthetic world")
    queries_per_profile: Positive = 5
    ads: Positive = Field(100, description="catalogue size of the synthetic world")
    candidates: Positive = Field(6, description="candidate ads per query")
    test_share: Share = Field(0.2, description="share of profiles held out for testing")
    max_bid: Positive = Field(100, description="bids are drawn from U{1..max_bid}")


class Sampling(Section):
    """How an engine samples."""

    temperature: Annotated[float, Field(ge=0, le=5)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="0: off")
    max_tokens: Positive = 120


class Model(Section):
    """A language model in a role: where it is, how it is prompted and sampled."""

    path: str = Field(description="`pocket:NAME`, a directory, or a Hugging Face name")
    prompt: Literal["paper", "compact"] = "compact"
    sampling: Sampling = Sampling()


class Engine(Section):
    """vLLM settings shared by rollout and judge actors."""

    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    max_model_len: Positive = 512
    max_num_seqs: Positive = 128
    kv_cache_mib: Positive = Field(256, description="size of the KV cache on CPU, per engine")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    block_size: Positive = 32
    tensor_parallel: Positive = 1
    enforce_eager: bool = True
    probe_tolerance: NonNegative = Field(
        0.01, description="largest mean |difference| of token log-probabilities to the trainer's"
    )


class Actors(Section):
    """One group of Ray actors."""

    workers: Positive = 1
    cpus: Annotated[float, Field(ge=0)] = Field(0.25, description="CPUs that each one reserves")
    gpus: Annotated[float, Field(ge=0)] = 0
    labels: Labels = {}
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="times that workers of the group are started anew in a run, after their process died"
    )


class Pctr(Section):
    """The pCTR reward model (paper, section 4.2)."""

    encoder: str = Field("pocket:ad-llm", description="frozen text encoder")
    user_dim: Positive = 64
    ad_dim: Positive = 32
    hidden: tuple[Positive, ...] = (128, 64, 32)
    lr: Annotated[float, Field(gt=0)] = 1e-3
    batch: Positive = 256
    passes: Positive = Field(5, description="passes over an epoch's clicks")
    start: Path | None = Field(None, description="a run's pCTR model to go on from, RUN/reward/epoch-N")
    members: Annotated[int, Field(ge=2)] = Field(
        5,
        description="networks beside it that each leave out a share of the queries: they make intervals",
    )
    interval: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.9, description="share of groups of like impressions whose click rate the intervals are to hold"
    )
    cold_share: Share = Field(0.1, description="share of rows trained as an unseen ad or user")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.8, description="of the MLP's inputs: an epoch has few queries, and it learns them by heart"
    )
    weight_decay: NonNegative = Field(3.0, description="of the MLP, decoupled as in AdamW")
    features: tuple[Literal["answer", "sentence", "ad_text", "structure", "match"], ...] = Field(
        ("answer", "sentence", "ad_text", "structure", "match"),
        description="what the network sees beside query, user and ad; the paper: answer alone",
    )


class Penalty(Section):
    """Coefficients of s_resp (Eq. 8), in bid units; not published by the paper."""

    weight: NonNegative = Field(1.0, description="lambda of Eq. 5")
    per_ad: NonNegative = 2.0
    free_ads: Annotated[int, Field(ge=0)] = Field(2, description="ads beyond these are excess")
    per_excess_ad: NonNegative = 30.0
    per_violation: NonNegative = Field(60.0, description="each format error")


class Irpo(Section):
    """Algorithm 1."""

    epochs: Positive = 3
    queries: Positive | None = Field(None, description="training queries per epoch; none: all")
    reward_answers: Positive = Field(10, description="answers per query that the judge reads")
    preference_answers: Annotated[int, Field(ge=2)] = Field(5, description="M of the paper")
    reward: Literal["pctr", "judge"] = Field(
        "pctr", description="what scores an answer; judge: the judge's own clicks, which no market has"
    )
    judgements: Positive = Field(4, description="readings of each answer where the judge scores it")
    reward_epochs: Positive | None = Field(
        None, description="the pCTR model learns in the first epochs only; none: in all"
    )
    risk: Share = Field(
        0.0,
        description="how far towards the low end of its interval a predicted click rate is scored; "
        "0: as predicted, 1: at the low end",
    )
    delta: NonNegative = Field(10.0, description="least reward gap of a preference pair")
    pctr_holdout: Share = Field(0.1, description="share of judged queries held out of the pCTR")
    max_drop_share: Share = Field(0.05, description="a stage that drops more fails")
    overlap: bool = Field(
        True, description="sample, judge, learn and align as inputs arrive; false: one after another"
    )


class Dpo(Section):
    """The alignment step."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    reference: Literal["policy", "bid_masked"] = Field(
        "policy",
        description="what the epoch's first policy reads as the reference: the prompt, or it without bids",
    )
    reference_logprobs: Literal["rollout", "recomputed"] = Field(
        "rollout",
        description="rollout: engines return them with phase-2 answers; the trainer checks a sample",
    )
    reference_check: Positive = Field(16, description="groups of that sample")
    reference_tolerance: NonNegative = Field(
        0.1,
        description="largest mean |difference| of an answer, nats; beyond it all are recomputed",
    )
    winner_nll: Annotated[float, Field(ge=0)] = Field(
        0, description="weight of each pair's winner's negative log-likelihood per token"
    )
    lr: Annotated[float, Field(gt=0)] = 1e-6
    warmup: Share = 0.1
    passes: Positive = Field(1, description="passes over an epoch's preference groups")
    batch_groups: Positive = Field(16, description="preference groups per optimizer step, all ranks")
    micro_groups: Positive = Field(8, description="preference groups per forward pass of one rank")
    row_tokens: Positive | None = Field(
        None, description="groups of a forward pass share rows of up to these tokens; none: a row each"
    )
    max_length: Positive | None = Field(
        None, description="tokens of a prompt and an answer, the answer's end cut off; none: all"
    )
    attention: Literal["auto", "parts"] = Field(
        "auto", description="parts: SDPA for each prompt and answer; auto: FlexAttention's blocks on GPUs"
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    zero_stage: Literal[1, 2, 3] = 2
    offload: bool = False
    gradient_checkpointing: bool = False
    workers: Positive = 2
    cpus: Annotated[float, Field(ge=0)] = 0.25
    gpus: Annotated[float, Field(ge=0)] = 0
    labels: Labels = {}


class Evaluation(Section):
    """The table at the end of a run, and `raylla evaluate`."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2), min_length=1, description="training seeds that `raylla evaluate CONFIG` trains"
    )
    variants: dict[str, tuple[str, ...]] = Field(
        {},
        description="name -> overrides section.key=value: runs that it trains beside them, first seed only",
    )

    queries: Positive | None = Field(None, description="test queries; none: all")
    answers: Positive = Field(4, description="answers per test query")
    bootstrap: Positive = 2000
    mechanisms: tuple[str, ...] = Field(
        ("pretrained", "rag-auction", "mosaic", "llm-auction"),
        description="rows of `raylla evaluate`, by entry point",
    )
    bids: tuple[NonNegative, ...] = Field(
        (0, 1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100), description="grid of the sweeps over one bid"
    )
    sweep_answers: Positive = Field(4, description="answers per query and bid of the monotonicity sweep")
    curve_answers: Positive = Field(
        200, description="answers per bid of the continuity curves, the averaged one's over all seeds"
    )
    curve_queries: Positive = Field(40, description="queries of each seed in the averaged curve")
    incentive_queries: Positive = Field(50, description="queries of each seed in the search for regret")
    incentive_answers: Positive = Field(8, description="answers per query and bid of those sweeps")
    equilibrium_queries: Annotated[int, Field(ge=0)] = Field(
        6, description="auctions of best responses, each seed"
    )
    equilibrium_bids: tuple[NonNegative, ...] = (1, 20, 40, 60, 80, 100)
    validation_queries: Positive = Field(60, description="training queries to tune mechanisms on")

    @field_validator("bids", "equilibrium_bids")
    @classmethod
    def _grid(cls, bids: tuple[float, ...]) -> tuple[float, ...]:
        if len(bids) < 2 or any(a >= b for a, b in pairwise(bids)):
            raise ValueError("give two or more bids in increasing order")
        return bids


class Online(Section):
    """Learning from served auctions: they and their clicks take the place of phase 1."""

    database: str | None = Field(None, description="the endpoint's database; none: the simulator")
    since: AwareDatetime | None = Field(None, description="auctions from then on; none: from the first")
    until: AwareDatetime | None = Field(None, description="auctions before then; none: up to now")
    least_auctions: Positive = Field(50, description="fewer are not trained on")


class Deadlines(Section):
    """How long each wait may take before it becomes a typed error."""

    start: Seconds = Field(300, description="an actor's engine to be ready")
    sample: Seconds = Field(1800, description="the next finished sample of a stage")
    reward: Seconds = Field(1800, description="a pCTR update or scoring")
    align: Seconds = Field(7200, description="one epoch's DPO")
    sync: Seconds = Field(300, description="a weight version to be live on every engine")


class Ray(Section):
    """The cluster."""

    address: str | None = Field(None, description="none: join the running job's, else start one here")
    autoscaling: bool = Field(
        False, description="the cluster adds nodes for what waits: its size now refuses nothing"
    )
    in_process: bool = Field(False, description="no Ray: everything in this process, for a debugger")


class Wandb(Section):
    """Weights & Biases: offline unless configured; can never stop a run."""

    mode: Literal["disabled", "offline", "online"] = "offline"
    project: str = "raylla"
    timeout: Seconds = 20


class Replicas(Section):
    """How many replicas a deployment runs, and what each reserves."""

    min_replicas: Positive = 1
    max_replicas: Positive = 1
    target_ongoing: Annotated[float, Field(gt=0)] = Field(
        16, description="requests in flight per replica that autoscaling aims at"
    )
    cpus: Annotated[float, Field(ge=0)] = 0.25
    gpus: Annotated[float, Field(ge=0)] = 0

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

    run: Path | None = Field(None, description="run directory whose weights and pCTR model are served")
    version: str | None = Field(None, description="weight version; none: the run's last")
    database: str = Field(
        "sqlite:///runs/serving/raylla.db", description="SQLAlchemy URL; postgresql+psycopg://... too"
    )
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    micros_per_unit: Annotated[int, Field(ge=1, le=10**9)] = Field(
        10_000, description="what one unit of the model's bids is worth; bids are whole multiples of it"
    )
    price_rule: Literal["first_price", "expected", "resampled"] = Field(
        "first_price",
        description="the bid per click; bid x pCTR per impression; or the truthful price, settled in sums",
    )
    resample_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="mu: share of bids that the rule `resampled` replaces"
    )
    candidates: Positive | None = Field(None, description="ads in the prompt; none: world.candidates")
    floor_micros: Annotated[int, Field(ge=0)] = Field(
        0, description="least bid per click, for all requests"
    )
    disclosure: Annotated[str, Field(min_length=1, max_length=40)] = Field(
        "Sponsored", description="label that the user sees after each placed ad"
    )
    token_ttl: Seconds = Field(86_400, description="how long a click token charges")
    tmax: Seconds = Field(30, description="longest time of one auction; then 503 with Retry-After")
    max_ongoing: Positive = Field(
        64, description="requests in progress per ingress replica; more get 503 with Retry-After"
    )
    longest_query: Positive = Field(2000, description="characters of a question, and of a profile's basics")
    largest_body: Positive = Field(256 * 2**10, description="bytes of a request's body")
    public_url: str | None = Field(
        None, description="where users reach the endpoint, for click URLs; none: as the request's Host says"
    )
    colocate: bool = Field(
        True,
        description="engine and pCTR model live in the ingress replica (fewest hops); false: in "
        "deployments of their own, which fail, restart and scale apart from it",
    )
    refresh: Seconds = Field(1, description="between two looks at budgets and catalogue")
    filtered_logged: Annotated[int, Field(ge=0)] = Field(
        100, description="ads filtered out that an auction's record names; it counts all"
    )
    notice_deadline: Seconds = Field(3600, description="how long a billing notice is retried")
    private_notices: bool = Field(
        False, description="billing notices may go to private and loopback addresses"
    )
    ingress: Replicas = Replicas()
    engine: Replicas = Replicas()
    predictor: Replicas = Replicas()


class Bench(Section):
    """`raylla bench`."""

    repeats: Positive = Field(5, description="interleaved repeats of each comparison")


NOT_OF_A_RUN = {"wandb", "deadlines", "ray", "bench", "serving", "evaluation"}
"""Sections that decide no result of a run, but for these of the evaluation's fields:"""
OF_A_RUN = {"queries", "answers", "bootstrap"}


class Config(Section):
    """Everything that decides a run."""

    name: str = "raylla"
    seed: Annotated[int, Field(ge=0)] = 0
    world: World = World()
    ad_llm: Model = Model(path="pocket:ad-llm")
    user_llm: Model = Model(path="pocket:user-llm")
    engine: Engine = Engine()
    rollout: Actors = Actors()
    judge: Actors = Actors()
    reward_trainer: Actors = Actors()
    pctr: Pctr = Pctr()
    penalty: Penalty = Penalty()
    irpo: Irpo = Irpo()
    dpo: Dpo = Dpo()
    evaluation: Evaluation = Evaluation()
    online: Online = Online()
    deadlines: Deadlines = Deadlines()
    ray: Ray = Ray()
    wandb: Wandb = Wandb()
    serving: Serving = Serving()
    bench: Bench = Bench()

    @model_validator(mode="after")
    def _risk_of_predictions(self) -> Config:
        if self.irpo.risk and self.irpo.reward == "judge":
            raise ValueError(
                f"irpo.risk={self.irpo.risk} lowers predicted click rates, but irpo.reward=judge scores by "
                "the judge's own clicks; set irpo.risk=0 or irpo.reward=pctr"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.world.candidates > self.world.ads and self.world.path is None:
            raise ValueError(
                f"world.candidates={self.world.candidates} exceeds world.ads={self.world.ads}; "
                "lower the first or raise the second"
            )
        if self.dpo.batch_groups % self.dpo.workers:
            raise ValueError(
                f"dpo.batch_groups={self.dpo.batch_groups} is not a multiple of "
                f"dpo.workers={self.dpo.workers}"
            )
        return self

    def digest(self) -> str:
        """A short hash of everything that decides the run's results."""
        decisive = self.model_dump(mode="json", exclude=NOT_OF_A_RUN)
        decisive["evaluation"] = self.evaluation.model_dump(mode="json", include=OF_A_RUN)
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML overlay and apply ``a.b=c`` overrides.

    Raises:
        ConfigError: unreadable file, unknown key or unusable value; names the field.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"config {path}: {error.strerror or error}; give the path of a YAML file"
        ) from None
    tree = _yaml(text, f"config {path}") or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path} holds a {type(tree).__name__}, not a mapping of settings")
    for override in overrides:
        _set(tree, override)
    return parse(tree, str(path))


def changed(config: Config, section: str | None, overrides: Sequence[str], source: str = "--set") -> Config:
    """``config`` with overrides of one section, or of any; ``source`` is named in errors.

    Raises:
        ConfigError: an override of another section, an unknown key or an unusable value.
    """
    tree = config.model_dump(mode="json")
    for override in overrides:
        if section is not None and not override.startswith(f"{section}."):
            raise ConfigError(f"--set {override!r}: only settings of {section} can be changed here")
        _set(tree, override)
    return parse(tree, source)


def parse(tree: dict[str, Any], source: str) -> Config:
    """A validated Config from nested mappings."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(source, one) for one in error.errors())) from None


def _set(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: write it as section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a section")
    tree[last] = _yaml(value, f"--set {override!r}: the value")


def _yaml(text: str | bytes, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise ConfigError(f"{what} is not YAML: {error}") from None


def _explain(source: str, error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"]) or "(whole config)"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location, list(keys()), n=1, cutoff=0.0)
        return f"{source}: unknown key {location}; the nearest valid key is {near[0]}"
    shown = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
    return f"{source}: {location}: {error['msg']}{shown}"


def keys(section: type[Section] = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings, sections included."""
    found: list[str] = []
    for name, info in section.model_fields.items():
        found.append(prefix + name)
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found += keys(kind, f"{prefix}{name}.")
    return found
