"""Everything that only a GPU can show, in eight minutes on one H100 or H200: gpu.json and gpu.md.

    make gpu                                            # or: python tests/gpu/run.py
    python tests/gpu/run.py --tiny                      # tiny shapes: whether every part runs
    python tests/gpu/run.py --tiny --device cpu         # the same without a GPU
    python tests/gpu/run.py --only single_gpu fsdp2     # some parts, into another --output_dir

It needs neither network nor an installed hfscale: a checkout, PyTorch and the packages in
`PACKAGES`. Results are written after every part; what the parts print is in gpu.log.

Exit status 1: a part failed or was cut off. 2: no GPU, something missing, or a wrong argument.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

# What the parts import, beside PyTorch, by the name of the package and of its module.
PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "datasets": "datasets",
    "tokenizers": "tokenizers",
    "huggingface_hub": "huggingface_hub",
    "peft": "peft",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "psutil": "psutil",
    "pyyaml": "yaml",
    "packaging": "packaging",
    "jinja2": "jinja2",
    "rich": "rich",
}
FIRST = ("prepare", "matmul")  # which the others need
# name: module, function, seconds, packages. The most telling come first: time may end.
PARTS = {
    "prepare": ("preparing", "prepare", 40, ()),
    "matmul": ("preparing", "matmul", 20, ()),
    "gpt2_small step": ("training", "small_step", 100, ()),
    "packed attention": ("attention", "packed_attention", 75, ()),
    "losses": ("training", "losses", 50, ()),
    "gpt2_xl step": ("training", "large_step", 120, ()),
    "generation": ("generating", "generation", 60, ()),
    "single_gpu": ("sharding", "single_gpu", 60, ()),
    "fsdp2": ("sharding", "fsdp2", 60, ()),
    "zero2": ("sharding", "zero2", 75, ("deepspeed",)),
    "auto_batch": ("training", "auto_batch", 30, ()),
    "qlora": ("training", "qlora", 45, ("bitsandbytes",)),
}
BACKENDS = {"cuda": "inductor", "cpu": "eager"}  # of torch.compile, which takes minutes for a CPU
PRELOAD = "tests.gpu.preload"  # imported once for all parts


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    problem = missing_packages() or missing_gpu(options) or taken(options)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="hfscale-gpu-") as folder:
        go_alone(folder)
        results = measure(options, Path(folder))
    print(f"{options.output_dir}: gpu.json, gpu.md, gpu.log")
    is_whole = all(result.status.startswith(("done", "not run")) for result in results)
    return 0 if is_whole else 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a trial with tiny shapes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), metavar="PART")
    parser.add_argument("--output_dir", default="runs/gpu")
    parser.add_argument("--overwrite", action="store_true", help="of an earlier run's files")
    return parser.parse_args(argv)


def missing_packages() -> str:
    """One line about packages that are not there; "": all are."""
    missing = [name for name, module in PACKAGES.items() if find_spec(module) is None]
    if not missing:
        return ""
    names = " ".join(missing)
    return (
        f"not installed: {', '.join(missing)}; pip install -c constraints.txt {names} "
        "(docs/speed.md: without a network)"
    )


def missing_gpu(options: argparse.Namespace) -> str:
    """One line about a device that cannot be measured."""
    import torch

    if options.device == "cpu":
        return "" if options.tiny else "--device cpu: shows nothing but a trial; add --tiny"
    if torch.cuda.is_available():
        return ""
    return "no CUDA device here; --tiny --device cpu tries the parts out on a CPU"


def taken(options: argparse.Namespace) -> str:
    """One line about a folder that holds another run's results, or cannot be written."""
    from hfscale.folders import check_output_file
    from hfscale.process import InputError

    try:
        check_output_file(options.output_dir, "gpu.json", overwrite=options.overwrite)
    except InputError as error:
        return str(error)
    return ""


def go_alone(folder: str) -> None:
    """No network, and caches that go with the run; torch's own of compiled kernels stays."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_EVALUATE_OFFLINE="1")
    os.environ.update(HF_HOME=f"{folder}/hf", HF_DATASETS_CACHE=f"{folder}/hf/datasets")
    os.environ.update(HF_DATASETS_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")
    # So that asking whether there is a GPU does not keep a process from being forked.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"


def measure(options: argparse.Namespace, folder: Path) -> list:
    """Run the parts; `folder` is for what they share."""
    from tests.gpu.bench import FULL, TINY, Bench
    from tests.gpu.report import write_report
    from tests.gpu.runner import Part, run_parts

    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    log = (output_dir / "gpu.log").absolute()
    log.unlink(missing_ok=True)
    sizes = FULL
    if options.tiny:
        sizes = replace(TINY, compile_backend=BACKENDS[options.device])
    bench = Bench(folder, options.device, sizes, log=log)
    parts = [
        Part(name, f"tests.gpu.{module}", function, seconds, needs)
        for name, (module, function, seconds, needs) in PARTS.items()
        if options.only is None or name in (*FIRST, *options.only)
    ]
    minutes = options.minutes
    if options.device == "cpu":  # a trial is about whether, and a shared CPU can be slow
        parts = [replace(part, seconds=10 * part.seconds) for part in parts]
        minutes *= 10

    def show(results: list) -> None:
        last = results[-1]
        print(f"{last.part}: {last.status}, {last.seconds:.0f} s", flush=True)
        write_report(output_dir, results, about(folder), is_trial=options.tiny)

    return run_parts(parts, bench, 60 * minutes, show, PRELOAD)


def about(folder: Path) -> dict[str, str]:
    """The machine, once the first part has looked at it; versions that pyproject.toml does not
    allow are marked.
    """
    path = folder / "about.json"
    return json.loads(path.read_text()) if path.is_file() else {}


if __name__ == "__main__":
    raise SystemExit(main())
