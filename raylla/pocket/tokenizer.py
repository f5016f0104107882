"""The pocket tokenizer: byte-level BPE, digits in pairs, bids and the ad markup in tokens of their own.

``@[Ad-`` and `` @`` are kept apart from words, so that the id of an ad follows its title within
one step of attention.  Bids share no token with ids, so that they can be read by size (see
`initial.Bids`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from raylla.world.prompts import LARGEST_COMPACT_BID, compact_bid

PAD, END, USER, ASSISTANT = "<|endoftext|>", "<|im_end|>", "<|user|>", "<|assistant|>"
PIECES = (
    r"@\[Ad-|\[Ad-|\{\"Ad-|,\"Ad-|\":|\]|\}"
    r"|\p{N}{1,2}| ?\p{L}+| ?@|\n| ?[^\s\p{L}\p{N}@\[\]\{\}\"]+|[\[\]\{\}\"]|\s+"
)
BIDS = tuple(compact_bid(bid) for bid in range(LARGEST_COMPACT_BID + 1))
HIDDEN_BID = compact_bid(None)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|assistant|>' + message.content + '<|im_end|>' if message.role == 'assistant'"
    " else '<|user|>' + message.content }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``vocabulary`` entries, bids included, learned from ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(BIDS) - 1,
        special_tokens=[AddedToken(name, special=True) for name in (PAD, END, USER, ASSISTANT)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in (*BIDS, HIDDEN_BID)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write the tokenizer's files into the directory ``path``."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(path)
