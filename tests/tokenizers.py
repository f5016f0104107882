"""Small tokenizers of every family, learned in a moment."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads that wait cost more than they learn

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{%- endif -%}"
)
NO_RULES = (
    "{{- bos_token -}}"
    "{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<start_of_turn>' + message.role + '\n' + message.content | trim + '<end_of_turn>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
INST = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{ '[INST] ' + message.content + ' [/INST]' if message.role == 'user' else message.content + '\n' }}"
    "{%- endfor -%}"
)
WORDS = (
    "which what mug cup tea kettle keeps stays warm hot for a an the in of user system assistant nurse "
    "from Oslo likes mugs tents be brief and kind s end start im turn think pad unk CLS SEP INST"
).split()


def texts(count: int = 300, seed: int = 0) -> list[str]:
    """Sentences, with digits, signs and other scripts among the words."""
    rng = random.Random(seed)
    pool = [*WORDS, "</", "<|", "[", "]", "|>", "<", "42", "é", "茶", "😀", "@Lumo Cup@[Ad-123]", "\n"]
    return [" ".join(rng.choices(pool, k=rng.randint(3, 20))) for _ in range(count)]


def byte_level(template: str | None = CHATML) -> Any:
    """As Qwen's: control tokens outside of the vocabulary, two of which are not called special."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        texts(),
        trainers.BpeTrainer(
            vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    made.add_special_tokens([AddedToken(one) for one in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    made.add_tokens([AddedToken(one, normalized=False) for one in ("<think>", "</think>", "\n\n")])
    return _wrapped(made, template, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def sentencepiece(template: str | None = INST) -> Any:
    """As Llama 2's: BPE that falls back to bytes, whose merges can write control tokens."""
    specials = ["<unk>", "<s>", "</s>"]
    spelled = [("<", "s"), ("<s", ">"), ("<", "/"), ("</", "s"), ("</s", ">")]
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learned.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    )
    pieces = list(specials) + [f"<0x{byte:02X}>" for byte in range(256)]
    merges = list(spelled)
    pieces += ["<", "/", ">", "s", "<s", "</", "</s"]
    model = json.loads(learned.to_str())["model"]
    pieces += [piece for piece in model["vocab"] if piece not in pieces]
    merges += [tuple(pair) for pair in model["merges"] if tuple(pair) not in merges]
    made = Tokenizer(
        models.BPE(
            {piece: id for id, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = learned.normalizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(one, normalized=False) for one in specials])
    return _wrapped(made, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(template: str | None = NO_RULES) -> Any:
    """As T5's and Gemma's: control tokens are pieces of the vocabulary, and text is normalized first."""
    specials = ["<pad>", "</s>", "<unk>", "<s>", "<start_of_turn>", "<end_of_turn>"]
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        texts(),
        trainers.UnigramTrainer(
            vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False
        ),
    )
    return _wrapped(made, template, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def wordpiece(template: str | None = INST) -> Any:
    """As BERT's: in lower case, with control tokens in the vocabulary."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        texts(), trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(one, made.token_to_id(one)) for one in ("[CLS]", "[SEP]")],
    )
    return _wrapped(
        made,
        template,
        bos_token="[CLS]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
    )


def words(template: str | None = INST) -> Any:
    """One id for each word that stands between spaces, control tokens among them."""
    specials = ["<unk>", "<s>", "</s>"]
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.train_from_iterator(
        texts(), trainers.WordLevelTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    )
    return _wrapped(made, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


FAMILIES = {one.__name__: one for one in (byte_level, sentencepiece, unigram, wordpiece, words)}


def _wrapped(made: Tokenizer, template: str | None, **tokens: str) -> Any:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, name_or_path="small", **tokens
    )
    wrapped.chat_template = template
    return wrapped


def control_ids(tokenizer: Any, more: Sequence[str] = ()) -> set[int]:
    """Ids of the tokens that no text may become."""
    return {
        id for id, token in tokenizer.added_tokens_decoder.items() if token.special or token.content in more
    }
