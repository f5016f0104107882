"""The text encoder over other families: positions, widths, encoder-decoders, tokenizers' files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from raylla.errors import ConfigError
from raylla.reward import reader
from raylla.reward.encoder import Encoder
from tests import tokenizers

SMALL = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 32}
BERT = {**SMALL, "intermediate_size": 48}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2, "pad_token_id": 0}
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40}

FAMILIES: dict[str, tuple[Callable[[int], Any], Callable[[], Any], int, int | None]] = {
    # family: model of a vocabulary's size, tokenizer, width of a token's vector, tokens at once (none: all)
    "bert": (
        lambda size: hf.BertModel(hf.BertConfig(vocab_size=size, max_position_embeddings=40, **BERT)),
        tokenizers.wordpiece,
        64,
        40,
    ),
    "roberta": (
        lambda size: hf.RobertaModel(
            hf.RobertaConfig(vocab_size=size, max_position_embeddings=42, pad_token_id=1, **BERT)
        ),
        tokenizers.byte_level,
        64,
        40,
    ),
    "mpnet": (
        lambda size: hf.MPNetModel(
            hf.MPNetConfig(vocab_size=size, max_position_embeddings=42, pad_token_id=1, **BERT)
        ),
        tokenizers.wordpiece,
        64,
        40,
    ),
    "albert": (
        lambda size: hf.AlbertModel(
            hf.AlbertConfig(vocab_size=size, max_position_embeddings=40, embedding_size=16, **BERT)
        ),
        tokenizers.unigram,
        48,
        40,
    ),
    "electra": (
        lambda size: hf.ElectraModel(
            hf.ElectraConfig(vocab_size=size, max_position_embeddings=40, embedding_size=16, **BERT)
        ),
        tokenizers.wordpiece,
        48,
        40,
    ),
    "t5": (lambda size: hf.T5Model(hf.T5Config(vocab_size=size, **T5)), tokenizers.unigram, 64, None),
    "t5-encoder": (
        lambda size: hf.T5EncoderModel(hf.T5Config(vocab_size=size, **T5)),
        tokenizers.unigram,
        64,
        None,
    ),
    "bart": (
        lambda size: hf.BartModel(hf.BartConfig(vocab_size=size, **BART)),
        tokenizers.byte_level,
        64,
        40,
    ),
    "gpt2": (
        lambda size: hf.GPT2Model(hf.GPT2Config(vocab_size=size, **GPT2)),
        tokenizers.byte_level,
        64,
        40,
    ),
}
LONG = " ".join(tokenizers.texts(20, seed=3))


def saved(path: Path, family: str) -> Path:
    make, words, _, _ = FAMILIES[family]
    tokenizer = words()
    torch.manual_seed(0)
    make(len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    return {family: saved(folder / family, family) for family in FAMILIES}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_reads_texts_of_any_length(models: dict[str, Path], family: str) -> None:
    reader.check_encoder(str(models[family]), "pctr.encoder")
    encoder = Encoder(str(models[family]))
    _, _, width, most = FAMILIES[family]
    assert encoder.dim == width
    assert encoder._max_tokens == (most or 2048)
    texts = ["which mug", LONG, "", "a cup of tea from Oslo"]
    found = encoder.encode(texts)
    assert found.shape == (4, width)
    assert np.isfinite(found).all()
    assert found[0].any()
    assert not found[2].any()
    encoder.forget()
    for row, text in enumerate(texts):  # alone, and so without padding
        np.testing.assert_allclose(encoder.encode([text])[0], found[row], atol=1e-5)
    assert len(encoder.words("which mug")) > 0


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_vectors_are_means_of_embeddings_and_states(models: dict[str, Path], family: str) -> None:
    """Against the library's own way of reading one text."""
    text = "which mug keeps tea warm"
    tokenizer = hf.AutoTokenizer.from_pretrained(models[family])
    model = hf.AutoModel.from_pretrained(models[family]).eval()
    if family in ("t5", "t5-encoder", "bart"):
        model = model.get_encoder()
    tokens = tokenizer(text, return_tensors="pt", return_special_tokens_mask=True)
    words = tokens["special_tokens_mask"][0] == 0
    with torch.inference_mode():
        last = model(input_ids=tokens["input_ids"]).last_hidden_state
        first = model.get_input_embeddings()(tokens["input_ids"])
    expected = torch.cat([first, last], dim=-1)[0][words].mean(dim=0).numpy()
    np.testing.assert_allclose(Encoder(str(models[family])).encode([text])[0], expected, atol=1e-5)


def test_our_own_limit_decides_how_much_is_read(models: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(models["bert"], tmp_path / "cut"))
    file = path / "tokenizer.json"
    cut = json.loads(file.read_text())
    cut["truncation"] = {"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 0}
    cut["padding"] = {
        "strategy": {"Fixed": 6},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    file.write_text(json.dumps(cut))
    texts = ["tea", LONG]
    np.testing.assert_array_equal(
        Encoder(str(path)).encode(texts), Encoder(str(models["bert"])).encode(texts)
    )
    assert Encoder(str(path))._max_tokens == 40
    assert Encoder(str(path), max_tokens=12)._max_tokens == 12
    few = Encoder(str(path), max_tokens=12).encode([LONG])
    assert not np.allclose(few, Encoder(str(path)).encode([LONG]), atol=1e-3)


def test_a_text_that_spells_control_tokens_is_read_as_text(models: dict[str, Path]) -> None:
    encoder = Encoder(str(models["bert"]))
    plain, cut = encoder.encode(["mug ( SEP ) cup", "mug [SEP] cup"])
    inside = encoder.encode_spans([("mug [SEP] cup", 4, 9)])[0]
    assert inside.any()
    assert not np.allclose(inside, cut)
    tokenizer = hf.AutoTokenizer.from_pretrained(models["bert"])
    assert not {*encoder.words("mug [SEP] [CLS] cup")} & {tokenizer.sep_token_id, tokenizer.cls_token_id}
    assert not np.allclose(plain, cut)


def test_what_reads_no_text_is_refused_by_its_small_files(models: dict[str, Path], tmp_path: Path) -> None:
    for family, model, words in (
        ("sees", hf.ViTModel(hf.ViTConfig(image_size=32, patch_size=16, **BERT)), tokenizers.wordpiece()),
        ("mixes", hf.FNetModel(hf.FNetConfig(vocab_size=200, **BERT)), tokenizers.wordpiece()),
    ):
        path = tmp_path / family
        model.save_pretrained(path)
        words.save_pretrained(path)
        with pytest.raises(ConfigError, match=r"pctr\.encoder=.* cannot be used: a .*Model takes no "):
            reader.check_encoder(str(path), "pctr.encoder")
        with pytest.raises(ConfigError, match=r"pctr\.encoder=.* cannot be used"):
            Encoder(str(path))
    bare = Path(shutil.copytree(models["bert"], tmp_path / "bare"))
    (bare / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="no weights in safetensors"):
        reader.check_encoder(str(bare), "pctr.encoder")
    (bare / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(ConfigError, match="unheard-of"):
        reader.check_encoder(str(bare), "pctr.encoder")
