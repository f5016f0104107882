"""A frozen text encoder: mean-pooled last hidden states of any Hugging Face model."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from raylla.errors import ConfigError
from raylla.models import local

Encodings = NDArray[np.float32]
Span = tuple[str, int, int]
"""A text and the half-open character range of it that is pooled over."""

MAX_WORDS = 32
"""Longest token list of `Encoder.words`."""
PADDING = 64
"""Tokens of padding that cost no more than another pass of the model; a batch may have a tenth, too."""


class Encoder:
    """Texts, or parts of texts read in their context, to float32 vectors of ``dim`` entries.

    Vectors are kept by (text, range) until ``capacity`` of them are held, the least recently
    used going first: queries and ads come back every epoch.
    """

    def __init__(
        self, path: str, max_tokens: int = 2048, batch_tokens: int = 4096, capacity: int = 100_000
    ) -> None:
        """Load the model from whatever `models.resolve` knows; safetensors only, no remote code.

        Raises:
            ConfigError: the model or its tokenizer cannot be loaded from ``path``.
        """
        try:
            with local(path) as directory:
                self._tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
                self._model = AutoModel.from_pretrained(
                    directory, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
                )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"pctr.encoder={path!r} cannot be loaded: {error}; give a directory with config.json, "
                "safetensors and a tokenizer"
            ) from None
        if not self._tokenizer.is_fast:
            raise ConfigError(f"pctr.encoder={path!r} has no fast tokenizer; give one with tokenizer.json")
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model.to(self._device).eval()
        self._model.config.use_cache = False  # nothing is ever decoded from where a text ends
        self._max_tokens = min(
            max_tokens, getattr(self._model.config, "max_position_embeddings", max_tokens)
        )
        self._batch_tokens = batch_tokens
        self._capacity = capacity
        self._lock = threading.Lock()
        self._cache: OrderedDict[Span, Encodings] = OrderedDict()
        self._words: dict[str, tuple[int, ...]] = {}
        self.dim = 2 * int(self._model.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> Encodings:
        """Mean over all tokens of each text, [len(texts), dim]; zeros for an empty text."""
        return self.encode_spans([(text, 0, len(text)) for text in texts])

    def encode_spans(self, spans: Sequence[Span]) -> Encodings:
        """Mean over the tokens that touch each range, [len(spans), dim].

        The whole text goes through the model, so that a sentence is read in its context; a range
        of no tokens (beyond ``max_tokens``) gets the mean of its text.  Safe to call from several threads.
        """
        wanted = OrderedDict.fromkeys(spans)
        with self._lock:
            vectors = {span: self._cache[span] for span in wanted if span in self._cache}
        vectors.update(self._compute([span for span in wanted if span not in vectors]))
        with self._lock:
            for span in wanted:
                self._cache[span] = vectors[span]
                self._cache.move_to_end(span)
            while len(self._cache) > self._capacity:
                self._cache.popitem(last=False)
        if not spans:
            return np.zeros((0, self.dim), dtype=np.float32)
        return np.stack([vectors[span] for span in spans])

    def forget(self) -> None:
        """Drop the vectors: with which texts one is computed shows in its last bits, and a model that was
        loaded goes on the same whatever was encoded before."""
        with self._lock:
            self._cache.clear()

    def words(self, text: str) -> tuple[int, ...]:
        """The first `MAX_WORDS` token ids of ``text`` in lower case, words tokenized alike anywhere."""
        if text not in self._words:
            if len(self._words) >= self._capacity:
                self._words.clear()
            # a leading space, or the first word of a text would be another token than in its middle
            ids = self._tokenizer(f" {text.lower()}", add_special_tokens=False)["input_ids"]
            self._words[text] = tuple(ids[:MAX_WORDS])
        return self._words[text]

    def _compute(self, spans: Iterable[Span]) -> Iterator[tuple[Span, Encodings]]:
        by_text: dict[str, list[Span]] = {}
        for span in spans:
            by_text.setdefault(span[0], []).append(span)
        if not by_text:
            return
        texts = list(by_text)
        tokens = self._tokenizer(
            texts, truncation=True, max_length=self._max_tokens, return_offsets_mapping=True
        )
        lengths = [len(ids) for ids in tokens["input_ids"]]
        for batch in _batches(lengths, self._batch_tokens):
            hidden = self._hidden([tokens["input_ids"][index] for index in batch])
            for row, index in enumerate(batch):
                offsets = np.asarray(tokens["offset_mapping"][index], dtype=np.int64).reshape(-1, 2)
                states = hidden[row, : lengths[index]]
                for span in by_text[texts[index]]:
                    yield span, _pooled(states, offsets, span[1], span[2])

    @torch.inference_mode()
    def _hidden(self, ids: Sequence[Sequence[int]]) -> Encodings:
        """Last hidden states, [len(ids), longest, dim], padded on the right."""
        longest = max(1, max(len(row) for row in ids))
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
        mask = None
        if any(len(row) < longest for row in ids):
            # At least one token each: a row that attends to nothing would be NaN.
            lengths = torch.tensor([max(1, len(row)) for row in ids])
            mask = (torch.arange(longest) < lengths[:, None]).long().to(self._device)
        padded = padded.to(self._device)
        first = self._model.get_input_embeddings()(padded)
        last = self._model(input_ids=padded, attention_mask=mask).last_hidden_state
        states: Encodings = torch.cat([first, last], dim=-1).float().cpu().numpy()
        return states


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of similar length together, at most ``budget`` tokens a batch (or one text) and little
    padding: an answer beside titles would have each of them computed at its own length."""
    batch: list[int] = []
    held = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        padded = (len(batch) + 1) * lengths[index]
        if batch and (padded > budget or padded - held - lengths[index] > max(PADDING, padded // 10)):
            yield batch
            batch, held = [], 0
        batch.append(index)
        held += lengths[index]
    if batch:
        yield batch


def _pooled(states: Encodings, offsets: NDArray[np.int64], start: int, end: int) -> Encodings:
    if not len(states):
        return np.zeros(states.shape[1], dtype=np.float32)
    touched = (offsets[:, 0] < end) & (offsets[:, 1] > start)
    chosen = states[touched] if touched.any() else states
    mean: Encodings = chosen.mean(axis=0, dtype=np.float32)
    return mean
