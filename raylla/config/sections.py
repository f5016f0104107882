"""The sections of the tree: every field, its bounds and its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=10**9, allow_inf_nan=False)]
"""At most 31 years, which is for ever: clocks and dates have ends."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes, and with it vLLM
_Labels = Annotated[
    dict[str, str], Field(description="Ray labels that a node must have to take them; none: any node")
]


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class World(Section):
    """Profiles, ads and queries."""

    path: Path | None = Field(None, description="directory of an imported world; none: synthetic")
    profiles: Positive = Field(120, description="users of the synthetic world")
    queries_per_profile: Positive = Field(5, description="questions of each of those users")
    ads: Positive = Field(100, description="catalogue size of the synthetic world")
    candidates: Positive = Field(6, description="candidate ads per query")
    candidates_by: Literal["category", "meaning"] = Field(
        "category",
        description="what relates ads to a query: the world's labels, or pctr.encoder as at the endpoint",
    )
    near: Positive = Field(
        4, description="candidates by meaning that are the nearest ads; the others come from anywhere"
    )
    test_share: Share = Field(0.2, description="share of profiles held out for testing")
    max_bid: Positive = Field(100, description="bids are drawn from U{1..max_bid}")


class Sampling(Section):
    """How an engine samples."""

    temperature: Annotated[float, Field(ge=0, le=2)] = Field(1.0, description="0: the likeliest token")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus; 1: off")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="0: off")
    max_tokens: Positive = Field(120, description="of an answer; longer ones are cut")


class Model(Section):
    """A language model in a role: where it is, how it is prompted and sampled."""

    path: str = Field(
        description="`pocket:NAME`, `package:NAME`, `adapter:NAME`, a directory, a URL, or a hub name"
    )
    prompt: Literal["paper", "plain", "compact"] = Field(
        "compact", description="the paper's, a plain one for small models, or the pocket models' own"
    )
    descriptions: Annotated[int, Field(ge=0, le=300)] = Field(
        0, description="characters of each ad's description that paper and plain prompts show"
    )
    order: Literal["drawn", "bid"] = Field(
        "drawn",
        description="how prompts list the ads: as drawn for the auction, or the highest bid first",
    )
    sampling: Sampling = Sampling()


class UserLlm(Model):
    """The User-LLM, and how its judgements are read."""

    reading: Literal["json", "token"] = Field(
        "json",
        description="json: one object of 0 and 1 for all ads of an answer; token: one yes or no for each "
        "ad, by its probability",
    )


class Engine(Section):
    """vLLM settings shared by rollout and judge actors."""

    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32", description="auto: bfloat16 where the processor computes in it, else float32"
    )
    max_model_len: Positive = Field(512, description="tokens of a prompt and its answer")
    max_num_seqs: Positive = Field(128, description="sequences that an engine writes at a time")
    kv_cache_mib: Positive = Field(256, description="size of the KV cache on CPU, per engine")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.85, description="share of a GPU's memory that an engine takes"
    )
    block_size: Positive = Field(32, description="tokens of a block of the KV cache")
    tensor_parallel: Positive = Field(1, description="GPUs that share one engine")
    enforce_eager: bool = Field(True, description="no compilation; false: a slower start, then faster")
    probe_tolerance: NonNegative | None = Field(
        None,
        description="largest mean |difference| of token log-probabilities to the trainer's float32; none: "
        "what holds for dtype, see raylla/precision.py",
    )


class Actors(Section):
    """One group of Ray actors."""

    workers: Positive = Field(1, description="actors of the group, at most")
    cpus: Annotated[float, Field(ge=0)] = Field(0.25, description="CPUs that each one reserves")
    gpus: Annotated[float, Field(ge=0)] = Field(0, description="GPUs that each one reserves")
    labels: _Labels = {}
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3,
        description="times that workers of the group that died or hung are started anew in a run; those of "
        "`rollout` and `judge`, in each shard",
    )

    @property
    def least(self) -> int:
        """Workers that are there all the time."""
        return self.workers


class Engines(Actors):
    """A group of engines that grows with the work that waits, up to `workers`, and shrinks without it."""

    min_workers: Positive | None = Field(
        None, description="workers that stay where nothing waits; none: as many as `workers`"
    )
    idle_seconds: Seconds = Field(
        30, description="how long a worker above min_workers may have nothing to do before it is ended"
    )

    @property
    def least(self) -> int:
        """Workers that stay."""
        return self.workers if self.min_workers is None else self.min_workers

    @model_validator(mode="after")
    def _ordered(self) -> Engines:
        if self.least > self.workers:
            raise ValueError(
                f"min_workers={self.min_workers} exceeds workers={self.workers}; "
                "lower the first or raise the second"
            )
        return self


class Rollout(Engines):
    """Engines of the Ad-LLM."""

    adapters: Literal["merged", "shared"] = Field(
        "merged",
        description="how engines take the versions of `lora`: as whole weights, merged with the base; or "
        "the adapter alone, over a base that stays",
    )


class Pctr(Section):
    """The pCTR reward model (paper, section 4.2)."""

    encoder: str = Field("pocket:ad-llm", description="frozen text encoder, named as ad_llm.path is")
    user_dim: Positive = Field(64, description="width of a user's embedding")
    ad_dim: Positive = Field(32, description="width of an ad's embedding")
    hidden: tuple[Positive, ...] = Field((128, 64, 32), description="widths of the MLP's layers")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="learning rate")
    batch: Positive = Field(256, description="impressions of an optimizer step")
    passes: Positive = Field(5, description="passes over an epoch's clicks")
    start: str | None = Field(
        None, description="a pCTR model to go on from: RUN/reward/epoch-N, or `raylla judge network`'s"
    )
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
    per_ad: NonNegative = Field(2.0, description="each placed ad")
    free_ads: Annotated[int, Field(ge=0)] = Field(2, description="ads beyond these are excess")
    per_excess_ad: NonNegative = Field(30.0, description="each ad in excess, beside per_ad")
    per_violation: NonNegative = Field(60.0, description="each format error")


class RewardTerm(Section):
    """A term of the reward beside money and format: `docs/evaluation.md` has what there is."""

    name: str = Field(description="of an entry point in the group raylla.reward_terms")
    weight: NonNegative = Field(description="in bid units for a value of 1")


class Irpo(Section):
    """Algorithm 1."""

    epochs: Positive = Field(3, description="rounds of answering, judging, learning and aligning")
    queries: Positive | None = Field(None, description="training queries per epoch; none: all")
    reward_answers: Positive = Field(10, description="answers per query that the judge reads")
    preference_answers: Annotated[int, Field(ge=2)] = Field(5, description="M of the paper")
    reward: Literal["pctr", "judge"] = Field(
        "pctr", description="what scores an answer; judge: the judge's own clicks, which no market has"
    )
    judgements: Positive = Field(
        4, description="readings of each answer where the judge scores it; one under user_llm.reading=token"
    )
    reward_epochs: Positive | None = Field(
        None, description="the pCTR model learns in the first epochs only; none: in all"
    )
    risk: Share = Field(
        0.0,
        description="how far towards the low end of its interval a predicted click rate is scored; "
        "0: as predicted, 1: at the low end",
    )
    align: Literal["dpo", "grpo"] = Field(
        "dpo",
        description="how rewards become the next weights: by pairs of answers, or by groups",
    )
    delta: NonNegative = Field(10.0, description="least reward gap of a preference pair (dpo)")
    pctr_holdout: Share = Field(0.1, description="share of judged queries held out of the pCTR")
    least_placed: Share = Field(
        0.02, description="least share of judged answers that place a valid ad; fewer end the run"
    )
    max_drop_share: Share = Field(0.05, description="a stage that drops more fails")
    overlap: bool = Field(
        True, description="sample, judge, learn and align as inputs arrive; false: one after another"
    )


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021): what is trained in place of all weights."""

    rank: Positive = Field(16, description="rank of the two factors of each adapter")
    alpha: Positive = Field(32, description="the adapter's product is scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers that have one",
    )
    blocks: Positive | None = Field(
        None, description="only the last blocks of the model have them; none: all have"
    )


class Tuning(Section):
    """Supervised training: of placement (`warmstart`), or of a judge (`judging`)."""

    passes: Positive = Field(1, description="passes over the rows")
    steps: Positive | None = Field(None, description="optimizer steps; none: as many as the passes hold")
    batch: Positive = Field(8, description="rows of an optimizer step, all ranks")
    micro: Positive = Field(4, description="rows of a forward pass of one rank")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="highest learning rate")
    warmup: Share = Field(0.1, description="share of the steps in which the rate rises")
    save_every: Positive = Field(10, description="optimizer steps between two checkpoints")
    threads: Positive = Field(
        1, description="of each rank on CPUs: more than one only where it has the machine to itself"
    )
    workers: Positive = Field(1, description="ranks that share a batch")
    lora: Lora | None = Lora()


class Warmstart(Tuning):
    """Supervised training of placement on published answers that hold an ad, before the first epoch."""

    data: Path = Field(description="native-ad answers: JSON lines, .gz or not, as Webis publishes them")
    held_out: Share = Field(0.15, description="share of brands that only the report sees")
    candidates: Annotated[int, Field(ge=2)] = Field(6, description="ads that a row's prompt lists")
    longest_answer: Positive = Field(700, description="characters of an answer")
    report_rows: Positive = Field(160, description="held-out rows that the report asks")
    report_answers: Positive = Field(2, description="answers to each")


class Dpo(Section):
    """The alignment step."""

    beta: Annotated[float, Field(gt=0)] = Field(0.1, description="beta of the paper: higher stays nearer")
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
    lr: Annotated[float, Field(gt=0)] = Field(1e-6, description="highest learning rate")
    warmup: Share = Field(0.1, description="share of the steps in which the rate rises")
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
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="longer gradients are cut")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32", description="of the forward pass; float32 weights are kept beside bfloat16 ones"
    )
    zero_stage: Literal[1, 2, 3] = Field(2, description="ZeRO: 1 splits optimizers, 2 gradients, 3 weights")
    offload: bool = Field(False, description="on GPUs: optimizer state in the host's memory")
    gradient_checkpointing: bool = Field(False, description="less memory, one more forward pass")
    workers: Positive = Field(2, description="ranks of the trainer; batch_groups is a multiple of them")
    cpus: Annotated[float, Field(ge=0)] = Field(0.25, description="CPUs that each rank reserves")
    gpus: Annotated[float, Field(ge=0)] = Field(0, description="GPUs that each rank reserves")
    labels: _Labels = {}


class Grpo(Section):
    """Group-relative policy optimization, where `irpo.align` is grpo (Shao et al. 2024); rates, batches,
    passes, precision and workers are those of `dpo`, its beta only scales the margins that are reported."""

    clip: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="a token's ratio to the epoch's first policy counts within 1 - clip and 1 + clip"
    )
    kl: NonNegative = Field(
        0.04, description="weight of the KL divergence from the epoch's first policy, per token"
    )
    scaled: bool = Field(
        True,
        description="advantages in standard deviations of an auction's rewards; false: in bid units",
    )


class Online(Section):
    """Learning from served auctions: they and their clicks take the place of phase 1."""

    database: str | None = Field(None, description="the endpoint's database; none: the simulator")
    since: AwareDatetime | None = Field(None, description="auctions from then on; none: from the first")
    until: AwareDatetime | None = Field(None, description="auctions before then; none: up to now")
    least_auctions: Positive = Field(50, description="fewer are not trained on")


class Deadlines(Section):
    """How long each wait may take before it becomes a typed error."""

    start: Seconds = Field(300, description="an actor's engine to be ready")
    sample: Seconds = Field(1800, description="a worker's next finished sample")
    reward: Seconds = Field(1800, description="a pCTR update or scoring")
    align: Seconds = Field(7200, description="one epoch's alignment")
    sync: Seconds = Field(300, description="a weight version to be live on every engine")
    storage: Seconds = Field(600, description="a stage's files to be in the bucket, or here from it")


class Storage(Section):
    """What a run keeps. Where it is, a path or any fsspec URL, is said by `--run`."""

    keep_versions: Positive | None = Field(
        None,
        description="newest weight versions that a run keeps, beside those in use and those that were ever "
        "served; none: all",
    )


class Ray(Section):
    """The cluster."""

    address: str | None = Field(None, description="none: join the running job's, else start one here")
    autoscaling: bool = Field(
        False, description="the cluster adds nodes for what waits: its size now refuses nothing"
    )
    in_process: bool = Field(False, description="no Ray: everything in this process, for a debugger")


class Wandb(Section):
    """Weights & Biases: offline unless configured; can never stop a run."""

    mode: Literal["disabled", "offline", "online"] = Field(
        "offline", description="online: sent as it comes; offline: kept in the run, for `wandb sync`"
    )
    project: str = Field("raylla", description="project that runs stand under")
    timeout: Seconds = Field(20, description="longest wait at the end for what is not sent yet")
