"""A frozen text encoder: mean-pooled states of any Hugging Face model that reads text.

A token's vector is its embedding beside its last hidden state.  The mean leaves out the tokens that a
tokenizer puts around a text ([CLS], [SEP], ``</s>``), so that a whole text and a sentence within one are
means of the same kind; vectors of models that were taught to be pooled with them differ a little from the
published ones (MiniLM: a cosine of 0.95 to 0.98).  ``max_tokens`` and the model's positions decide how much
of a text is read, never the tokenizer's file (MiniLM's cuts at 128).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import AutoModel, AutoTokenizer

from raylla.literal import Literal
from raylla.models import local
from raylla.models.quiet import quiet
from raylla.reward.reader import UNREADABLE, longest, positions, reader, unfit, unsuited

Encodings = NDArray[np.float32]
TextSpan = tuple[str, int, int]
"""A text and the half-open character range of it that is pooled over."""

_FIELD = "pctr.encoder"
MAX_WORDS = 32
"""Longest token list of `Encoder.words`."""
_PADDING = 64
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
            ConfigError: the model or its tokenizer cannot be loaded from ``path``, or reads no text.
        """
        quiet()
        try:
            with local(path) as directory:
                tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
                model = AutoModel.from_pretrained(
                    directory, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
                )
        except UNREADABLE as error:
            raise unsuited(_FIELD, path, str(error)) from None
        if reason := unfit(tokenizer, model):
            raise unsuited(_FIELD, path, reason)
        self._device = "cpu"
        self._model = reader(model).eval()
        self._model.config.use_cache = False  # nothing is ever decoded from where a text ends
        self._tokenizer = Literal(tokenizer.backend_tokenizer).tokenizer
        self._max_tokens = longest(self._model, max_tokens)
        self._tokenizer.enable_truncation(self._max_tokens)
        self._batch_tokens = batch_tokens
        self._capacity = capacity
        self._lock = threading.Lock()
        self._cache: OrderedDict[TextSpan, Encodings] = OrderedDict()
        self._words: dict[str, tuple[int, ...]] = {}
        self.dim = self._tried(path)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model.to(self._device)

    def encode(self, texts: Sequence[str]) -> Encodings:
        """Mean over the tokens of each text, [len(texts), dim]; zeros for a text without any."""
        return self.encode_spans([(text, 0, len(text)) for text in texts])

    def encode_spans(self, spans: Sequence[TextSpan]) -> Encodings:
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
            ids = self._tokenizer.encode(f" {text.lower()}", add_special_tokens=False).ids
            self._words[text] = tuple(ids[:MAX_WORDS])
        return self._words[text]

    def _compute(self, spans: Iterable[TextSpan]) -> Iterator[tuple[TextSpan, Encodings]]:
        by_text: dict[str, list[TextSpan]] = {}
        for span in spans:
            by_text.setdefault(span[0], []).append(span)
        if not by_text:
            return
        texts = list(by_text)
        read = self._tokenizer.encode_batch(texts)
        lengths = [len(encoding.ids) for encoding in read]
        for batch in _batches(lengths, self._batch_tokens):
            hidden = self._hidden([read[index].ids for index in batch])
            for row, index in enumerate(batch):
                states = hidden[row, : lengths[index]]
                for span in by_text[texts[index]]:
                    yield span, _pooled(states, read[index], span[1], span[2])

    def _tried(self, path: str) -> int:
        """Width of a token's vector, after a long text and a short one have been read together.

        Raises:
            ConfigError: the model does not give a state for each token of them.
        """
        # As long as it gets where positions have a table: who counts them in its own way says so now.
        tokens = self._max_tokens if positions(self._model) is not None else 8
        ids = self._tokenizer.encode("tea " * tokens).ids[:tokens]
        try:
            states = self._hidden([ids, ids[:2]])
        except (*UNREADABLE, IndexError, AttributeError) as error:
            raise unsuited(_FIELD, path, f"it does not read a text of {len(ids)} tokens: {error}") from None
        return int(states.shape[-1])

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
        if batch and (padded > budget or padded - held - lengths[index] > max(_PADDING, padded // 10)):
            yield batch
            batch, held = [], 0
        batch.append(index)
        held += lengths[index]
    if batch:
        yield batch


def _pooled(states: Encodings, read: Encoding, start: int, end: int) -> Encodings:
    offsets = np.asarray(read.offsets, dtype=np.int64).reshape(-1, 2)
    words = np.asarray(read.special_tokens_mask) == 0
    touched = words & (offsets[:, 0] < end) & (offsets[:, 1] > start)
    chosen = states[touched if touched.any() else words]
    if not len(chosen):
        return np.zeros(states.shape[1], dtype=np.float32)
    mean: Encodings = chosen.mean(axis=0, dtype=np.float32)
    return mean
