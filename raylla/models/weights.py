"""What is in a model's files, as arrays: whole models, and adapters over them, merged.

An adapter is a low-rank change of some of its base's matrices (Hu et al. 2021, equation 3): the merged
matrix is W + s B A, with B A of rank r and s = alpha / r.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize, safe_open

from raylla.errors import ConfigError, WeightError
from raylla.models.found import found
from raylla.models.places import CONFIG, adapter_settings, is_adapter

HEAD = "lm_head.weight"
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before a module's name."""
_DTYPES: dict[str, type[np.floating[Any]]] = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
UNMERGED = ("use_dora", "use_qalora", "lora_bias", "layer_replication", "trainable_token_indices")
"""Settings of peft's LoRA under which a merged matrix is something else than W + s B A."""

BUFFERS = re.compile(r"(^|\.)(attn\.(masked_)?bias|rotary_emb\.inv_freq)$")
"""Tensors in old files that are computed and not learned: masks of GPT-2, frequencies of Llama."""

_Floats = npt.NDArray[np.float32]
Tensors = dict[str, _Floats]
_Shape = tuple[int, ...]


def read_weights(place: str | Path) -> Tensors:
    """Every tensor of the model at ``place`` as float32, by its stored name, a tied head included.

    Args:
        place: whatever `models.resolve` knows; an adapter is merged with its base.

    Raises:
        WeightError: there is no such model, or its files cannot be read; names the file.
        StorageError: they cannot be brought here.
    """
    try:
        with found(place) as directory:
            weights = stored_tensors(directory)
            embedding = tied_embedding(directory, {name: array.shape for name, array in weights.items()})
    except ConfigError as error:
        raise WeightError(f"weight version at {place}: no *.safetensors there: {error}") from error
    if embedding is not None:
        weights[HEAD] = weights[embedding]
    return weights


def shapes(directory: Path) -> dict[str, _Shape]:
    """Shape of each tensor of the whole model in ``directory``, a tied head included, unread.

    Raises:
        WeightError: as `read_weights`.
    """
    sizes = _sizes(directory)
    embedding = tied_embedding(directory, sizes)
    return sizes if embedding is None else sizes | {HEAD: sizes[embedding]}


def tied(directory: Path) -> bool:
    """Whether the head of the whole model in ``directory`` is its embedding.

    Raises:
        WeightError: as `read_weights`.
    """
    return tied_embedding(directory, _sizes(directory)) is not None


def renamed(weights: Mapping[str, _Floats], known: Iterable[str]) -> Tensors:
    """``weights`` under the ``known`` names where they differ by the name of the model's body alone.

    Some families' files leave it out (``h.0...`` for ``transformer.h.0...``), and a trainer writes it.
    """
    names = {*known} - {HEAD}
    if names & weights.keys():
        return dict(weights)
    longer = {name.partition(".")[2]: name for name in names}

    def one(name: str) -> str:
        bare = name.partition(".")[2]
        return bare if bare in names else longer.get(name, name)

    return {name if name == HEAD else one(name): array for name, array in weights.items()}


def stored_tensors(directory: Path) -> Tensors:
    """Every tensor that the files of a model hold, those of an adapter's base merged with it.

    Raises:
        WeightError, ConfigError, StorageError: as `read_weights`.
    """
    if not is_adapter(directory):
        return _tensors(weight_files(directory))
    about = adapter_settings(directory)
    with found(about["base_model_name_or_path"]) as base:
        weights = stored_tensors(base)
    _merge(weights, _tensors([directory / ADAPTER_WEIGHTS]), about, directory)
    return weights


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a whole model's weights: those that its index names, where it has one.

    Raises:
        WeightError: there are none, or the index names one that is missing.
    """
    index = directory / INDEX
    if index.is_file():
        try:
            named = sorted({*json.loads(index.read_text())["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightError(f"{index} cannot be read as an index of weights: {error!r}") from None
        missing = [name for name in named if not (directory / name).is_file()]
        if missing:
            raise WeightError(
                f"{index} names {missing[0]}, which is not there; was the model copied whole?"
            )
        return [directory / name for name in named]
    if (directory / WHOLE).is_file():
        return [directory / WHOLE]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise WeightError(
            f"weight version at {directory}: no *.safetensors there; was the version committed whole?"
        )
    return files


def root(directory: Path) -> dict[str, Any]:
    """config.json of a whole model, or of the one under an adapter; empty where there is none.

    Raises:
        WeightError: it cannot be read.
    """
    if is_adapter(directory):
        with found(adapter_settings(directory)["base_model_name_or_path"]) as base:
            return root(base)
    path = directory / CONFIG
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise WeightError(f"{path} cannot be read: {error}") from None


def tied_embedding(directory: Path, sizes: Mapping[str, _Shape]) -> str | None:
    """Name of the embedding that is the head, too; none where the model has a head of its own.

    Raises:
        WeightError: it cannot be told which of the weights it is; names the architecture.
    """
    if HEAD in sizes:
        return None
    about = root(directory)
    shape = {**about, **(about.get("text_config") or {})}
    architecture = (about.get("architectures") or ["an unnamed architecture"])[0]
    # Where a family ties by default its config.json does not say so; a causal model without a head does.
    default = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    if not shape.get("tie_word_embeddings", default):
        return None
    rows = shape.get("vocab_size")
    fitting = [name for name, size in sizes.items() if len(size) == 2 and rows in (None, size[0])]
    likely = [
        name for name in fitting if re.search(r"(^|\.)(embed_tokens|wte|word_embeddings)\.weight$", name)
    ]
    chosen = likely or fitting
    if len(chosen) != 1:
        raise WeightError(
            f"{directory}: {architecture} ties its head to an embedding of {rows} rows, and "
            f"{len(chosen)} of its weights could be that; save the model with {HEAD} of its own"
        )
    return chosen[0]


def _merge(weights: Tensors, adapter: Tensors, about: Mapping[str, Any], directory: Path) -> None:
    """Put the adapter's changes into ``weights``, in place of what they change."""
    kind = about.get("peft_type", "LORA")
    strange = [name for name in UNMERGED if about.get(name)]
    if kind != "LORA" or strange:
        raise WeightError(
            f"{directory}: an adapter of peft_type={kind} {' '.join(strange)} cannot be merged here; merge "
            "it with peft's merge_and_unload, save the whole model and give its directory"
        )
    halves: dict[str, dict[str, _Floats]] = {}
    for key, array in adapter.items():
        name = key.removeprefix(PREFIX)
        module, half, rest = _split(name)
        if half is None:
            plain = name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
            weights[_name(plain, weights, directory)] = array
        elif rest in ("", ".weight"):
            halves.setdefault(module, {})[half] = array
        else:
            raise WeightError(f"{directory}: {key} is no part of a low-rank product that can be merged")
    for module, pair in halves.items():
        if len(pair) != 2:
            raise WeightError(f"{directory}: {module} has only {', '.join(pair)}; was it saved whole?")
        name = _name(f"{module}.weight", weights, directory)
        embedding = "lora_embedding_A" in pair
        low, high = (
            (pair["lora_embedding_A"], pair["lora_embedding_B"])
            if embedding
            else (pair["lora_A"], pair["lora_B"])
        )
        change = _scale(module, about) * (high @ low)
        held = weights[name]
        # Embeddings and GPT-2's layers are stored the other way round; a square one does not show it.
        turned = change.shape != held.shape or (not embedding and about.get("fan_in_fan_out"))
        if embedding or turned:
            change = change.T
        if change.shape != held.shape:
            raise WeightError(
                f"{directory}: the change of {name} has shape {change.shape}, the base's weight "
                f"{held.shape}; is {about['base_model_name_or_path']} the base that it was trained on?"
            )
        weights[name] = held + change


def _split(name: str) -> tuple[str, str | None, str]:
    """Module, half of the product and what follows, of the name of an adapter's tensor."""
    match = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\..+)?", name)
    if match is None:
        return name, None, ""
    return match[1], match[2], match[3] or ""


def _scale(module: str, about: Mapping[str, Any]) -> float:
    """alpha / r of a module, or alpha / sqrt(r) where peft's use_rslora says so."""
    rank = _pattern(module, about.get("rank_pattern"), about.get("r", 8))
    alpha = _pattern(module, about.get("alpha_pattern"), about.get("lora_alpha", 8))
    return float(alpha / (math.sqrt(rank) if about.get("use_rslora") else rank))


def _pattern(module: str, patterns: Mapping[str, float] | None, default: float) -> float:
    """As peft reads its patterns: the first that ends the module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _name(name: str, weights: Mapping[str, _Floats], directory: Path) -> str:
    """The base's stored name of a parameter: some families store theirs without the first part."""
    for stored in (name, name.partition(".")[2]):
        if stored in weights:
            return stored
    raise WeightError(f"{directory}: {name} is no weight of the adapter's base")


def _sizes(directory: Path) -> dict[str, _Shape]:
    """Shape of each tensor that a whole model's files hold."""
    sizes: dict[str, _Shape] = {}
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="numpy") as tensors:
                names = [name for name in tensors.keys() if not BUFFERS.search(name)]  # noqa: SIM118
                sizes.update((name, tuple(tensors.get_slice(name).get_shape())) for name in names)
        except (OSError, SafetensorError) as error:
            raise _unreadable(file, error) from error
    return sizes


def _tensors(files: Iterable[Path]) -> Tensors:
    weights: Tensors = {}
    for file in files:
        try:
            tensors = deserialize(file.read_bytes())
        except (OSError, SafetensorError) as error:
            raise _unreadable(file, error) from error
        for name, tensor in tensors:
            if BUFFERS.search(name):
                continue
            array = _array(tensor["dtype"], tensor["data"], f"{file}: {name}")
            weights[name] = array.reshape(tensor["shape"])
    return weights


def _unreadable(file: Path, error: Exception) -> WeightError:
    return WeightError(f"{file} cannot be read ({error}); was it written whole?")


def _array(dtype: str, data: bytearray, what: str) -> _Floats:
    if dtype == "BF16":
        # The upper half of a float32, for which numpy has no name.
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype not in _DTYPES:
        raise WeightError(f"{what} is stored as {dtype}; save the weights as BF16 or {', '.join(_DTYPES)}")
    return np.frombuffer(data, _DTYPES[dtype]).astype(np.float32, copy=False)
