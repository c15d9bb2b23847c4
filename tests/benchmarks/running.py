"""How benchmarks are run: their rows as one table, and as JSON where it is asked for."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from measure import ENVIRONMENT, Row, not_measured, table, with_limits, write_json

LIMITS = Path(__file__).with_name("limits.json")
Benchmark = Callable[..., list[Row]]


def run_alone(benchmark: Benchmark, description: str, **settings: Any) -> None:
    """Measure and show one benchmark; `settings` are options of its own with their defaults."""
    parser = make_parser(description)
    for name, default in settings.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    chosen = {name: getattr(options, name) for name in settings}
    show({"this benchmark": benchmark}, options, **chosen)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a first look, on less")
    parser.add_argument("--rounds", type=int, help="more give a narrower interval")
    parser.add_argument("--output", type=Path, help="also write the rows as JSON")
    return parser


def show(benchmarks: Mapping[str, Benchmark], options: argparse.Namespace, **settings: Any) -> None:
    """Run them all: one table at the end, and one JSON file, which is there after the first."""
    os.environ.update(ENVIRONMENT)
    limits = json.loads(LIMITS.read_text())
    started = time.perf_counter()
    rows: list[Row] = []
    for name, benchmark in benchmarks.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows += benchmark(Path(folder), options.small, options.rounds, **settings)
            except (RuntimeError, OSError) as error:
                rows.append(not_measured(name, error))
        seconds = time.perf_counter() - started
        print(f"{name}: measured, {seconds:,.0f} s since the start", file=sys.stderr)
        if options.output:
            write_json(with_limits(rows, limits), options.output, seconds)
    print(table(with_limits(rows, limits)))
    print(f"{seconds:,.0f} s; load at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if options.output:
        print(f"also in {options.output}")
