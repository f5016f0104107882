"""The whole tree, what of it decides a run, and what must agree between sections."""

from __future__ import annotations

import hashlib
import json

from pydantic import Field, model_validator

from raylla.config.judging import Judging
from raylla.config.measuring import Bench, Evaluation
from raylla.config.sections import (
    Actors,
    Deadlines,
    Dpo,
    Engine,
    Engines,
    Grpo,
    Irpo,
    Lora,
    Model,
    Online,
    Pctr,
    Penalty,
    Ray,
    RewardTerm,
    Rollout,
    Section,
    Seed,
    Storage,
    UserLlm,
    Wandb,
    Warmstart,
    World,
)
from raylla.config.serving import Serving
from raylla.config.sharding import Shards

NOT_OF_A_RUN = {
    "wandb",
    "deadlines",
    "storage",
    "ray",
    "bench",
    "serving",
    "evaluation",
    "judging",
    "shards",
}
"""Sections that decide no result of a run, but for these of the evaluation's fields:"""
OF_A_RUN = {"queries", "answers", "bootstrap"}
DETECTABILITY = "detectability"
"""The reward term that `evaluation.native_answers` teaches: where it is weighed that file decides, too."""
POOLS = ("rollout", "judge", "reward_trainer")
"""Groups whose number of workers decides nothing: the same request has the same answer on any of them."""


class Config(Section):
    """Everything that decides a run."""

    name: str = Field("raylla", description="what tables and W&B call the run")
    seed: Seed = Field(0, description="of bids, samples, judgements and training")
    world: World = World()
    ad_llm: Model = Model(path="pocket:ad-llm")
    user_llm: UserLlm = UserLlm(path="pocket:user-llm")
    engine: Engine = Engine()
    rollout: Rollout = Rollout()
    judge: Engines = Engines()
    reward_trainer: Actors = Actors()
    shards: Shards = Shards()
    pctr: Pctr = Pctr()
    penalty: Penalty = Penalty()
    reward_terms: tuple[RewardTerm, ...] = ()
    irpo: Irpo = Irpo()
    dpo: Dpo = Dpo()
    grpo: Grpo = Grpo()
    lora: Lora | None = None
    warmstart: Warmstart | None = None
    judging: Judging | None = None
    evaluation: Evaluation = Evaluation()
    online: Online = Online()
    deadlines: Deadlines = Deadlines()
    storage: Storage = Storage()
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
    def _groups_of_what_was_sampled(self) -> Config:
        if self.irpo.align == "grpo" and self.dpo.reference != "policy":
            raise ValueError(
                f"irpo.align=grpo weighs answers against the policy that wrote them, which read the bids; "
                f"dpo.reference={self.dpo.reference} is for irpo.align=dpo"
            )
        if self.irpo.align == "grpo" and self.dpo.winner_nll:
            raise ValueError(
                f"dpo.winner_nll={self.dpo.winner_nll} adds to DPO's loss, of which irpo.align=grpo has "
                "none; set it to 0"
            )
        if self.irpo.align == "grpo" and self.ad_llm.sampling.temperature == 0:
            raise ValueError(
                "irpo.align=grpo compares answers that were drawn, and ad_llm.sampling.temperature=0 draws "
                "none; raise it"
            )
        return self

    @model_validator(mode="after")
    def _adapters_are_trained(self) -> Config:
        if self.rollout.adapters == "shared" and self.lora is None:
            raise ValueError(
                "rollout.adapters: shared needs versions that are adapters; set lora, or adapters: merged"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if len(self.term_weights) != len(self.reward_terms):
            raise ValueError("reward_terms: a name occurs twice; give each term once")
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

    @model_validator(mode="after")
    def _engines_for_every_shard(self) -> Config:
        for name, group in (("rollout", self.rollout), ("judge", self.judge)):
            if group.least < self.shards.workers:
                raise ValueError(
                    f"shards.workers={self.shards.workers} exceeds the {group.least} workers that {name} "
                    "has at least, and each shard needs one of its own; lower the first or raise the second"
                )
        return self

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of each term of the reward, by name, in their order."""
        return {term.name: term.weight for term in self.reward_terms}

    @property
    def readings(self) -> int:
        """Readings of an answer that the judge scores: one is enough where it says how sure it is."""
        return 1 if self.user_llm.reading == "token" else self.irpo.judgements

    @property
    def prompt_room(self) -> int:
        """Tokens of a prompt that leave the Ad-LLM's answer its own."""
        return self.engine.max_model_len - self.ad_llm.sampling.max_tokens

    def digest(self) -> str:
        """A short hash of everything that decides the run's results."""
        decisive = self.model_dump(mode="json", exclude=NOT_OF_A_RUN)
        read = OF_A_RUN | ({"native_answers"} if DETECTABILITY in self.term_weights else set())
        decisive["evaluation"] = self.evaluation.model_dump(mode="json", include=read)
        for group in POOLS:
            decisive[group] = {name: decisive[group][name] for name in ("cpus", "gpus")}
        if self.rollout.adapters == "shared":  # sums of another order than with merged weights
            decisive["rollout"]["adapters"] = "shared"
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
