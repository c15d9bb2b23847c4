"""Hours of faults, with a table at the end: `python -m tests.faults kills --count 50`."""

import argparse
import collections
import json
import tempfile
import time
from pathlib import Path

from tests.faults.damage import damages
from tests.faults.kills import kills
from tests.faults.runs import ENGINES, RECIPES, Kind, make_place, start, weights_of


def reference(kind: Kind, place: Path) -> None:
    """Let the run go to its end once, for its weights and its time."""
    folder = place / f"reference-{kind.recipe}-{kind.engine}"
    started = time.monotonic()
    status = start(kind.command(folder), folder.with_suffix(".log")).wait()
    kind.seconds = time.monotonic() - started
    kind.weights = weights_of(folder)
    if status != 0 or not kind.weights:
        raise RuntimeError(f"{kind.recipe} on {kind.engine} failed unharmed: see {folder}.log")


def main() -> None:
    """Try the faults that are asked for, print a table, and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", choices=["kills", "damage"])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--count", type=int, default=10, help="kills of each recipe and engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=Path, help="folder to work in; default: a temporary one")
    args = parser.parse_args()
    place = args.place or Path(tempfile.mkdtemp(prefix="hfscale-faults-"))
    make_place(place)
    rows = []
    for recipe in args.recipes:
        for engine in args.engines:
            kind = Kind(recipe, engine, place)
            reference(kind, place)
            if args.faults == "kills":
                results = list(kills(kind, place, args.count, args.seed))
            else:
                results = list(damages(kind, place))
            counts = collections.Counter(result["result"] for result in results)
            row = {"recipe": recipe, "engine": engine, "tried": len(results), **counts}
            rows.append(row | {"results": results})
            print(json.dumps(row), flush=True)
    (place / "faults.json").write_text(json.dumps(rows, indent=1))
    print(f"what each led to, and the logs of what failed: {place}")


if __name__ == "__main__":
    main()
