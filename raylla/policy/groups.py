"""Preference groups as tokens. Imports no torch: the driver checks a job before it sends it."""

from __future__ import annotations

from dataclasses import dataclass

from raylla.errors import RunError
from raylla.records import PreferenceGroup


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """A preference group as tokens: ``answers[0]`` is the winner, the others are the losers.

    ``reference_prompt`` is what the reference policy reads in place of ``prompt``, if anything else.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    reference_prompt: tuple[int, ...] | None = None

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


def token_group(group: PreferenceGroup, reference_prompt: tuple[int, ...] | None = None) -> TokenGroup:
    """The tokens of ``group``.

    Raises:
        RunError: its prompt is empty, an answer holds no token, or its answers do not share a prompt.
    """
    prompt = group.winner.prompt_token_ids
    if not prompt:
        raise RunError(f"preference group {group.auction_id}: its prompt holds no token")
    for answer in (group.winner, *group.losers):
        if answer.prompt_token_ids != prompt:
            raise RunError(
                f"preference group {group.auction_id}: answer {answer.sample_id} has another prompt than "
                "its winner; group only answers to one auction"
            )
        if not answer.token_ids:
            raise RunError(f"preference group {group.auction_id}: answer {answer.sample_id} holds no token")
    answers = (group.winner.token_ids, *(loser.token_ids for loser in group.losers))
    return TokenGroup(prompt, answers, reference_prompt)
