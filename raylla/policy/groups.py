"""Preference groups as tokens. Imports no torch: the driver checks a job before it sends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from raylla.errors import RunError
from raylla.records import PreferenceGroup


class Packable(Protocol):
    """A prompt and answers to it, as tokens: what a packed row holds."""

    @property
    def prompt(self) -> tuple[int, ...]: ...

    @property
    def answers(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def length(self) -> int: ...

    @property
    def pairs(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """A preference group as tokens: ``answers[0]`` is the winner, the others are the losers.

    ``reference_prompt`` is what the reference policy reads in place of ``prompt``, if anything else;
    ``reference`` its log-probability of each answer (nats), where that is known; ``rewards`` those of the
    answers (bid units), where they count and not their order alone.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    reference_prompt: tuple[int, ...] | None = None
    reference: tuple[float, ...] | None = None
    rewards: tuple[float, ...] = ()

    def for_reference(self) -> TokenGroup:
        """The same answers after the reference's prompt."""
        return self if self.reference_prompt is None else TokenGroup(self.reference_prompt, self.answers)

    @property
    def length(self) -> int:
        """Tokens of the packed row."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def pairs(self) -> int:
        """DPO pairs: one for each loser."""
        return len(self.answers) - 1


FILLER = TokenGroup((0,), ((0,),))
"""A group without pairs: no weight in the loss, there so that every rank takes the same steps."""


def token_group(
    group: PreferenceGroup,
    reference_prompt: tuple[int, ...] | None = None,
    max_length: int | None = None,
    reference_version: str | None = None,
) -> TokenGroup:
    """The tokens of ``group``; an answer that exceeds ``max_length`` with its prompt loses its end.

    The answers' log-probabilities are the reference's where all were sampled by ``reference_version``
    from the very tokens that it would read.

    Raises:
        RunError: its prompt is empty or fills ``max_length``, an answer holds no token, or its answers
            do not share a prompt.
    """
    prompt = group.winner.prompt_token_ids
    if not prompt:
        raise RunError(f"preference group {group.auction_id}: its prompt holds no token")
    if max_length is not None and len(prompt) >= max_length:
        raise RunError(
            f"preference group {group.auction_id}: its prompt of {len(prompt)} tokens leaves nothing of "
            f"its answers within dpo.max_length={max_length}; raise it"
        )
    members = (group.winner, *group.losers)
    for answer in members:
        if answer.prompt_token_ids != prompt:
            raise RunError(
                f"preference group {group.auction_id}: answer {answer.sample_id} has another prompt than "
                "its winner; group only answers to one auction"
            )
        if not answer.token_ids:
            raise RunError(f"preference group {group.auction_id}: answer {answer.sample_id} holds no token")
    room = None if max_length is None else max_length - len(prompt)
    whole = room is None or all(len(answer.token_ids) <= room for answer in members)
    known = [
        answer.logprob
        for answer in members
        if answer.logprob is not None and answer.weight_version == reference_version
    ]
    given = whole and reference_prompt is None and len(known) == len(members)
    answers = tuple(tuple(answer.token_ids[:room]) for answer in members)
    rewards = (group.winner_reward, *group.loser_rewards) if group.loser_rewards else ()
    return TokenGroup(tuple(prompt), answers, reference_prompt, tuple(known) if given else None, rewards)
