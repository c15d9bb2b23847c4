"""One HTML page of a run, or of several beside each other: the number that matters, curves,
samples, data, speed, settings. Every training leaves its own; this adds what other recipes
measured.

hfscale report --runs runs/pretrain-tiny
hfscale report --runs runs/a runs/b --also runs/scale-tiny runs/data --output_file runs/a-and-b.html
"""

from dataclasses import dataclass, field
from pathlib import Path

from hfscale.config import parse_args
from hfscale.finished_run import Page
from hfscale.folders import check_output_file, write_atomically
from hfscale.process import InputError, run


@dataclass
class ReportArguments:
    runs: list[str] = field(
        default_factory=lambda: ["runs/quickstart"], metadata={"help": "folders of finished runs"}
    )
    also: list[str] = field(
        default_factory=list,
        metadata={
            "help": "folders that score, compare, scale, prepare_data, attention_maps or "
            "bias_probe wrote, to show on the page"
        },
    )
    output_file: str | None = field(
        default=None,
        metadata={"help": "the page; default: report.html in the first run, written anew"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace a page that exists"})


def main(argv: list[str] | None = None) -> Page:
    args = parse_args(ReportArguments, argv, recipe=__file__)
    if not args.runs:
        raise InputError("runs: none given; name the folder of a finished run")
    page = Path(args.output_file or Path(args.runs[0], "report.html"))

    from hfscale.report.page import is_own_page, render_page

    # The page that the training left holds nothing that is not written again.
    renewed = args.output_file is None and is_own_page(page)
    check_output_file(
        str(page.parent),
        page.name,
        overwrite=args.overwrite or renewed,
        place=f"output_file {page}",
    )

    html = render_page(args.runs, args.also)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, html)
    megabytes = len(html.encode()) / 1e6
    print(f"page: {page} ({megabytes:.2f} MB); open it in a browser, no network is needed")
    return Page(html)


if __name__ == "__main__":
    run(main)
