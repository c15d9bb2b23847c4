"""All benchmarks, one table, one JSON file.

make bench          # small: minutes
make bench-full     # takes its time: narrow intervals, real sizes
"""

from pathlib import Path

import cleaning_growth
import cleaning_speed
import expression_time
import generate_speed
import lora_cost
import near_duplicates
import packing_speed
import score_speed
import streaming_memory
import train_speed
import whole_run
from running import make_parser, show

OUTPUT = Path(__file__).parents[2] / "build" / "benchmarks.json"
BENCHMARKS = {
    "training step": train_speed.benchmark,
    "whole run": whole_run.benchmark,
    "adapters": lora_cost.benchmark,
    "packing": packing_speed.benchmark,
    "scoring": score_speed.benchmark,
    "generation": generate_speed.benchmark,
    "streaming": streaming_memory.benchmark,
    "cleaning": cleaning_speed.benchmark,
    "cleaning's growth": cleaning_growth.benchmark,
    "near duplicates": near_duplicates.benchmark,
    "repair and masking": expression_time.benchmark,
}


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, help="leave out the others")
    parser.set_defaults(output=OUTPUT)
    options = parser.parse_args()
    chosen = options.only or BENCHMARKS
    show({name: BENCHMARKS[name] for name in chosen}, options)


if __name__ == "__main__":
    main()
