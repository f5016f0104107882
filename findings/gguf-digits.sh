#!/usr/bin/env bash
# transformers 5.19.0 (gguf 0.19.0): how a tokenizer that comes out of a GGUF file cuts numbers.
#
# Expected: a GGUF file names the rule that cuts text before its merges apply (tokenizer.ggml.pre). The rule
# "smollm", that of SmolLM and SmolLM2, sets every digit alone, so that 100 becomes 1, 0, 0 though the
# vocabulary has the token 100. transformers applies the rule, as it does for "qwen2" and "tekken", or
# refuses a name that it does not know.
#
# What happens: transformers knows only some of the names. For the others, "smollm" among them, it cuts as
# GPT-2 does and says nothing. Text without digits looks right; numbers become tokens in places where the
# model never saw them. Any name at all is taken.
#
# Output seen:
#     transformers 5.19.0, gguf 0.19.0
#     qwen2          ['1', '0', '0']
#     tekken         ['1', '0', '0']
#     smollm         ['100']
#     no-such-rule   ['100']
#     warnings: none
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --no-compile torch==2.13.0 transformers==5.19.0 tokenizers==0.23.3 gguf==0.19.0 numpy==2.3.5
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" "$folder/venv/bin/python" - 2>errors <<'PYTHON' || { tail -n 20 errors; exit 1; }
import logging
import warnings
from importlib.metadata import version

import gguf
from transformers import AutoTokenizer
from transformers.utils import logging as library_logging

letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
tokens = [*letters, "10", "100"]
seen = []


class Keep(logging.Handler):
    def emit(self, record):
        seen.append(record.getMessage())


library_logging.get_logger("transformers").addHandler(Keep(logging.WARNING))


def cut(rule):
    """The tokens of 100 under a byte-level BPE file whose merges are 1 + 0 and 10 + 0."""
    writer = gguf.GGUFWriter("tiny.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges(["1 0", "10 0"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        pieces = AutoTokenizer.from_pretrained(".", gguf_file="tiny.gguf").tokenize("100")
    seen.extend(str(one.message) for one in caught)
    return pieces


print(f"transformers {version('transformers')}, gguf {version('gguf')}")
cuts = {rule: cut(rule) for rule in ("qwen2", "tekken", "smollm", "no-such-rule")}
for rule, pieces in cuts.items():
    print(f"{rule:14} {pieces}")
print("warnings:", seen or "none")
assert cuts["qwen2"] == cuts["tekken"] == ["1", "0", "0"], "rules that it knows are no longer applied"
assert cuts["smollm"] == cuts["no-such-rule"] == ["100"], "the rule is applied"
assert not seen, "it says so now"
PYTHON
