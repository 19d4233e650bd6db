"""Whether training here ends in the loss curve of sentence-transformers' trainer: within the noise of two seeds.

    python scripts/benchmark/loss_curve.py --pairs pairs.parquet --output loss_curve.json   # half an hour on two cores

Three runs of the same recipe from the same weights: ours with two seeds, and sentence-transformers' trainer, padded and
with all logits, on the batches of the first. Mean losses of the last steps are printed. The two runs of one seed differ
by their dropout, those of two seeds by the order of their batches as well.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from materials import DATA, make_models
from sides import Recipe, fit_ours, fit_peer

from splade_lit.core.files import replace_text

_LAST = 50


def main() -> None:
    """Train, print and write the curves."""
    parser = argparse.ArgumentParser(description="Compare loss curves with sentence-transformers' trainer.")
    parser.add_argument("--pairs", default=str(DATA / "qa-pairs" / "train.parquet"), help="file of pairs")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of 16 pairs")
    parser.add_argument("--max_tokens", type=int, default=64, help="tokens a document is cut to")
    parser.add_argument("--output", type=Path, help="JSON file for the curves")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="splade_lit_loss_curve_") as folder:
        base = str(make_models(Path(folder))["minilm"] / "document_0_MLMTransformer")
        recipe = Recipe(base, arguments.pairs, arguments.max_tokens, folder, max_steps=arguments.steps, seed=1)
        curves = {
            "ours, seed 1": fit_ours(recipe),
            "ours, seed 2": fit_ours(replace(recipe, seed=2)),
            "sentence-transformers, seed 1": fit_peer(recipe),
        }
    for name, losses in curves.items():
        print(f"{name}: first {losses[0]:.4f}, mean of the last {_LAST} {statistics.mean(losses[-_LAST:]):.4f}")
    if arguments.output:
        replace_text(arguments.output, json.dumps(curves) + "\n")


if __name__ == "__main__":
    main()
