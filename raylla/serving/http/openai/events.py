"""A response of the Responses API: the object, and the events that its stream is made of."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from raylla.serving.auction.exchange import Answered, Asked
from raylla.serving.http.openai.responsebodies import ResponseRequest
from raylla.serving.http.openai.shown import cited, detail

ENDS = {"stop": "completed", "length": "incomplete"}
"""How an answer ended -> the response's status."""


class ResponseForm:
    """The OpenAI objects of one response."""

    def __init__(
        self,
        body: ResponseRequest,
        asked: Asked,
        model: str,
        disclosure: str,
        notes: Sequence[str],
    ) -> None:
        self.id = f"resp_{secrets.token_hex(12)}"
        self._item = f"msg_{secrets.token_hex(12)}"
        self._links, self._disclosure, self._notes = asked.links, disclosure, notes
        self._texts: list[str] = []
        self._number = 0
        self._common: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "background": False,
            "error": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": dict(asked.metadata),
            "parallel_tool_calls": False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": body.store is not False,
            "temperature": body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "auto",
            "user": body.user,
        }

    def whole(self, text: str, end: Answered) -> dict[str, Any]:
        """The response, once it is done."""
        status = ENDS[end.finish]
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            **self._common,
            "status": status,
            "incomplete_details": reason,
            "output": [self._message(status, [self._part(text, end)])],
            "usage": _usage(end),
            "raylla": detail(end, self._disclosure, self._notes),
        }

    def opening(self) -> str:
        """The events before the text."""
        begun = {
            **self._common,
            "status": "in_progress",
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        part = {"content_index": 0, "item_id": self._item, "part": self._part("", None)}
        return (
            self._event("response.created", response=begun)
            + self._event("response.in_progress", response=begun)
            + self._event(
                "response.output_item.added", output_index=0, item=self._message("in_progress", [])
            )
            + self._event("response.content_part.added", output_index=0, **part)
        )

    def piece(self, text: str) -> str:
        """More text."""
        self._texts.append(text)
        return self._of_text("response.output_text.delta", delta=text, logprobs=[])

    def closing(self, end: Answered) -> str:
        """The events behind the text, the whole response last."""
        whole = self.whole("".join(self._texts), end)
        (message,) = whole["output"]
        (part,) = message["content"]
        added = [
            self._of_text(
                "response.output_text.annotation.added", annotation_index=place, annotation=annotation
            )
            for place, annotation in enumerate(part["annotations"])
        ]
        return (
            "".join(added)
            + self._of_text("response.output_text.done", text=part["text"], logprobs=[])
            + self._of_text("response.content_part.done", part=part)
            + self._event("response.output_item.done", output_index=0, item=message)
            + self._event(f"response.{whole['status']}", response=whole)
        )

    def failing(self, problem: dict[str, str]) -> str:
        """The event of an answer that broke off; clients raise ``error``."""
        said = {"code": problem["code"], "message": problem["message"], "param": None}
        return self._event("error", **said, error=problem)

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _part(self, text: str, end: Answered | None) -> dict[str, Any]:
        ads = [{"type": "url_citation", **citation} for citation in cited(end, self._links)] if end else []
        return {"type": "output_text", "text": text, "annotations": ads, "logprobs": []}

    def _of_text(self, kind: str, **fields: Any) -> str:
        return self._event(kind, item_id=self._item, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> str:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(event)}\n\n"


def _usage(end: Answered) -> dict[str, Any]:
    return {
        "input_tokens": end.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": end.answer_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": end.prompt_tokens + end.answer_tokens,
    }
