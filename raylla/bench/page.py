"""The table of a page in Markdown, from the figures that `raylla bench --json` keeps.

    python -m raylla.bench.page docs/results/bench.json docs/performance.md

writes it between the page's two marks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from raylla.bench.run import figure

_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"

AIMS = {
    "rollout actor ÷ raw vLLM": "≥ 0.97",
    "packed DPO ÷ TRL DPOTrainer, pocket shape": "≥ 3.5",
    "packed DPO ÷ TRL DPOTrainer, paper shape": "≥ 7",
    "packed LoRA DPO ÷ TRL DPOTrainer": "≥ 5",
    "weight refresh ÷ engine restart": "≤ 0.01",
    "weights of canary, stable and organic ÷ one": "≤ 1.1",
    "adapter live ÷ engine restart": "≤ 1/150",
    "epoch wall ÷ critical path": "≤ 1.10",
    "overlapped ÷ sequential epoch, scripted": "≥ 1.3",
    "driver's CPU ÷ epoch, 16 ": "≤ 0.02",
    "driver's CPU ÷ epoch, 64 ": "≤ 0.03",
    "driver's CPU ÷ epoch, 256 ": "≤ 0.05",
    "driver's CPU ÷ epoch, 1024 ": "≤ 0.10",
    "driver's memory, a further answer": "≤ 200 bytes",
    "seconds ~ queries^x": "1.0 ± 0.05",
    "prompt tokens computed ~ samples^x": "0",
}
"""What a row is held to, by how its name begins."""


def write_page(figures: Path, page: Path) -> None:
    """Put the table of ``figures`` into ``page``."""
    text = page.read_text()
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    page.write_text(f"{before}{_BEGIN}\n{_table(json.loads(figures.read_text()))}{_END}{after}")


def _table(parts: dict[str, Any]) -> str:
    """A line per row: its figure, its sides, its notes and its aim; ratios and figures as medians."""
    lines = ["| part | what | median [spread] | aim | sides (medians) and notes |", "|---|---|---|---|---|"]
    for part, measured in parts.items():
        for row in measured["rows"]:
            unit = "×" if row["unit"] == "x" else f" {row['unit']}".rstrip()
            spread = f"{figure(row['low'])}, {figure(row['high'])}"
            sides = [
                f"{side['name']} {figure(side['median'])} {side['unit']}" for side in row.get("sides", ())
            ]
            notes = [
                f"{name}: {value if isinstance(value, str) else figure(value)}"
                for name, value in row.get("notes", {}).items()
            ]
            aim = next((aim for name, aim in AIMS.items() if row["name"].startswith(name)), "")
            cells = (part, row["name"], f"{figure(row['median'])}{unit} [{spread}]", aim)
            lines.append(f"| {' | '.join(cells)} | {'; '.join(sides + notes)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), Path(sys.argv[2]))
