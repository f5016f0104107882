"""Import of real data: products and queries of GEM-Bench, a benchmark of generated advertising.

`ca_prod_products.tsv` has product_id, ad_title, ad_description, website and cluster_category, and
`ca_prod_queries.tsv` query_id and query_text.  Two of the 120 query ids are ids of products, so the ids
pair nothing: the world relates no query to an ad, and candidates are to be found by meaning
(`world.candidates_by`).  It knows no users: they are drawn.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from raylla import config
from raylla.world.imports import catalogue, tables
from raylla.world.imports.tablefiles import Cells

PRODUCTS, QUERIES = "ca_prod_products.tsv", "ca_prod_queries.tsv"
CLUSTERS = {
    "0.0": "car and machine parts",
    "1.0": "shoes",
    "2.0": "home and furniture",
    "3.0": "health and food",
    "4.0": "electronics",
    "5.0": "clothing",
}
"""What the products of a cluster are; the data has numbers."""


def import_gembench(path: Path, out: Path | None, settings: config.World, seed: int) -> tables.Imported:
    """Read the two tables in ``path`` into a world, saved to ``out`` unless that is None.

    Queries are as search engines log them: their escapes (%26) are resolved.

    Raises:
        WorldError: a file is missing, partial or damaged.
    """
    taken = catalogue.take_ads(path / PRODUCTS, {}, _clustered)
    queries = path / QUERIES
    return tables.assemble("gem-bench", taken, queries, {}, out, settings, seed, _resolved)


def _clustered(cells: Cells) -> Cells:
    return {**cells, "category": CLUSTERS.get(cells.get("category", ""), "")}


def _resolved(cells: Cells) -> Cells:
    return {**cells, "query": unquote(cells["query"])}
