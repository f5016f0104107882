"""`raylla pocket`: build and measure the small models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raylla.strictjson import dumps
from raylla.terminal import console, told

app = typer.Typer(help="The small models that raylla ships and rebuilds.", no_args_is_help=True)


@app.command()
@told
def build(
    out: Annotated[Path, typer.Option(help="working directory; an interrupted build continues")] = Path(
        "runs/pocket-build"
    ),
    stage: Annotated[list[str] | None, typer.Option(help="only these stages, in order")] = None,
) -> None:
    """Train the tokenizer and the two pocket models (about half an hour on two cores)."""
    from raylla.pocket.build import STAGES, build_models

    chosen = tuple(known for known in STAGES if not stage or known.name in stage)
    for progress in build_models(out, chosen):
        console.print(
            f"{progress['stage']:>9} {progress['step']:>5}/{progress['of']} "
            f"loss {progress['loss']:.3f}  {progress['tokens_per_second']:.0f} tokens/s",
            highlight=False,
        )


@app.command()
@told
def evaluate(
    ad_llm: Annotated[str, typer.Option(help="model that places ads")] = "pocket:ad-llm",
    user_llm: Annotated[str, typer.Option(help="model that judges")] = "pocket:user-llm",
    prompts: Annotated[int, typer.Option(help="held-out prompts of each kind")] = 1000,
    out: Annotated[Path | None, typer.Option(help="also write the figures as JSON")] = None,
) -> None:
    """Measure the pocket models on held-out prompts: format, copying, taste, judgement."""
    from raylla.pocket.evaluate import evaluate_models

    figures = evaluate_models(ad_llm, user_llm, prompts)
    console.print_json(dumps(figures))
    if out is not None:
        out.write_text(dumps(figures, indent=2) + "\n")
