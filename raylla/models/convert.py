"""A GGUF file as an ordinary model directory: bfloat16 safetensors, configuration, tokenizer."""

from __future__ import annotations

from pathlib import Path

from raylla.errors import FetchError


def convert_model(source: Path, target: Path) -> None:
    """Write the model in ``source`` to the new directory ``target``.

    The weights are de-quantized, so that the result can be trained, saved and served like any other.

    Raises:
        FetchError: transformers cannot read the file.
    """
    # Here, not above: the command line has to start without them.
    import torch
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        split = GGUFReader(source).get_field("tokenizer.ggml.pre")
        if split is not None and split.contents() == "smollm":
            # This family cuts between digits before all else, which transformers leaves out: with it
            # two line breaks before a number are one token, as they were when the model was trained.
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    except ValueError as error:
        raise FetchError(f"{source.name} cannot be converted: {error}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    for file in target.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone
