#!/usr/bin/env bash
# transformers 5.19.0 and tokenizers 0.23.3: a call that truncates leaves its mark in the saved tokenizer.
#
# Expected: truncation=True, max_length=2 are arguments of one call. What save_pretrained writes afterwards
# is the tokenizer, the same as if nothing had been cut; transformers' own next call indeed cuts nothing.
#
# What happens: the arguments of the last call are set on the tokenizer underneath, and save_pretrained
# writes them into tokenizer.json, padding too. transformers resets them at each call, so that nothing is
# seen there. Whatever reads the same file with the library tokenizers (servers, indexers, other languages)
# cuts each text at two tokens and pads it, without a word. Saving after a training or an evaluation is
# saving after such a call.
#
# Output seen:
#     transformers 5.19.0, tokenizers 0.23.3
#     saved before the call
#         transformers: [['the', 'cat', 'sat', 'down'], ['the']]
#         tokenizers:   [['the', 'cat', 'sat', 'down'], ['the']]
#     saved after the call
#         transformers: [['the', 'cat', 'sat', 'down'], ['the']]
#         tokenizers:   [['the', 'cat'], ['the', '<pad>']]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq transformers==5.19.0 tokenizers==0.23.3 numpy==2.3.5
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" "$folder/venv/bin/python" - 2>errors <<'PYTHON' || { tail -n 20 errors; exit 1; }
import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

words = ["<pad>", "the", "cat", "sat", "down"]
plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>")
TEXTS = ["the cat sat down", "the"]


def read_by_both(folder):
    """Tokens of the texts, by transformers and by tokenizers, out of one saved folder."""
    tokenizer.save_pretrained(folder)
    reread = AutoTokenizer.from_pretrained(folder)
    bare = Tokenizer.from_file(f"{folder}/tokenizer.json")
    one = [reread.convert_ids_to_tokens(reread(text)["input_ids"]) for text in TEXTS]
    return one, [bare.encode(text).tokens for text in TEXTS]


print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
before = read_by_both("before")
tokenizer("the cat sat down", truncation=True, padding="max_length", max_length=2)
after = read_by_both("after")
for name, (ours, bare) in {"saved before the call": before, "saved after the call": after}.items():
    print(f"{name}\n    transformers: {ours}\n    tokenizers:   {bare}")
whole = [["the", "cat", "sat", "down"], ["the"]]
assert before == (whole, whole) and after[0] == whole, "transformers itself cuts"
assert after[1] == [["the", "cat"], ["the", "<pad>"]], "the call is no longer in the saved tokenizer"
PYTHON
