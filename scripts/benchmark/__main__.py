"""How fast and how lean splade_lit is beside sentence-transformers, in one run.

    python scripts/benchmark --output bench.json          # everything, an hour or more on two cores
    python scripts/benchmark --short --output bench.json  # about 5 minutes

Every side works in a process of its own and the sides take turns, on the same weights, texts and batches, with the same
precision and as many threads. The ratio of a comparison is that of neighbouring turns: the median over the turns, with
quartiles. `floor` is the time of the bare matrix products that the work cannot avoid, measured in the same turns.
Memory is the peak of a step above what the process holds between steps without gradients: the model and the optimizer's
state.

Real texts come from the folder SPLADE_LIT_DATA, by default `../shared/data` beside the repository. Measures that need
it are left out, with a line, where it is missing.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from measures import MEASURES, Entry, Scope
from rich.console import Console
from rich.table import Table

from splade_lit.core.files import replace_text


def main() -> None:
    """Measure, print, and write the figures as they come."""
    parser = argparse.ArgumentParser(description="Measure splade_lit beside sentence-transformers.")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--short", action="store_true", help="about 5 minutes")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES, help="what to measure, if not all")
    settings = parser.parse_args()
    entries: dict[str, Entry] = {}
    with tempfile.TemporaryDirectory(prefix="splade_lit_benchmark_") as folder:
        scope = Scope(Path(folder), settings.short)
        for measure in settings.only:
            print(f"{time.strftime('%H:%M:%S')} {measure}", flush=True)
            for name, entry in MEASURES[measure](scope):
                entries[name] = entry
                print(f"{time.strftime('%H:%M:%S')} {name}: {entry.ratio:.2f}", flush=True)
                if settings.output:
                    text = json.dumps({name: asdict(entry) for name, entry in entries.items()}, indent=2) + "\n"
                    replace_text(settings.output, text)
    Console(width=120).print(table(entries))


def table(entries: dict[str, Entry]) -> Table:
    """The entries for the terminal."""
    result = Table("what", "unit", "ours", "peer", "ratio", "quartiles", "floor", "over floor")
    for name, entry in entries.items():
        low, high = entry.quartiles
        floor = "" if entry.floor is None else f"{entry.floor:.3g}"
        over = "" if entry.over_floor is None else f"{entry.over_floor:.2f}"
        figures = (f"{entry.ours:.3g}", f"{entry.peer:.3g}", f"{entry.ratio:.2f}", f"{low:.2f} to {high:.2f}")
        result.add_row(name, entry.unit, *figures, floor, over)
    return result


if __name__ == "__main__":
    main()
