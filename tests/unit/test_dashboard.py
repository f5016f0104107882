"""The Grafana dashboard: well formed, and on metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from raylla.serving.http.reports import Reports

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, rows left out."""
    found = json.loads(DASHBOARD.read_text())
    return [one for one in found["panels"] if one["type"] != "row"]


def metrics(prefix: str) -> set[str]:
    """Names of the metrics with a prefix that its queries read."""
    queries = [target["expr"] for one in panels() for target in one["targets"]]
    return {
        name
        for query in queries
        for name in re.findall(r"\b(?:ray_)?raylla_\w+|\bray_\w+", query)
        if name.startswith(prefix)
    }


def test_panels_are_well_formed() -> None:
    found = json.loads(DASHBOARD.read_text())
    numbers = [one["id"] for one in found["panels"]]
    assert len(numbers) == len(set(numbers))
    places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in found["panels"]]
    assert len(places) == len(set(places))
    for one in panels():
        assert one["title"]
        assert one["gridPos"]["x"] + one["gridPos"]["w"] <= 24
        for target in one["targets"]:
            for opening, closing in ("()", "{}", "[]"):
                assert target["expr"].count(opening) == target["expr"].count(closing)


def test_every_part_of_raylla_is_on_it() -> None:
    assert len(metrics("ray_raylla_test_")) >= 4
    assert {"ray_raylla_tokens_total", "ray_raylla_stage_active"} <= metrics("ray_raylla_")
    assert {"raylla_requests_total", "raylla_latency_seconds_bucket"} <= metrics("raylla_")


def test_the_endpoint_exports_what_is_asked() -> None:
    text = Reports(lambda: 0, lambda: 0).text().decode()
    kinds = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
    exported = {
        name + suffix
        for name, kind in kinds.items()
        for suffix in (["_bucket", "_sum", "_count"] if kind == "histogram" else [""])
    }
    assert metrics("raylla_") <= exported
