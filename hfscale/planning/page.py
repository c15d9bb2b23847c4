"""A plan on the terminal, and its memory as a picture."""

import os
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hfscale.folders import check_writable
from hfscale.planning.memory import Step
from hfscale.planning.plan import (
    NEAR,
    Device,
    LaunchPlan,
    Machines,
    fastest,
    recommended,
)
from hfscale.planning.settings import MEASURE_INSTEAD, Rows
from hfscale.process import InputError
from hfscale.report.tables import in_one_format, number, show_records, show_table

COLORS = {
    "weights": "#4878a8",
    "bf16 copies": "#9ac1e0",
    "gradients": "#d98c40",
    "optimizer": "#7a5ba6",
    "activations": "#5ba66b",
    "logits": "#c95d5d",
    "communication": "#8c8c8c",
}
TERMINAL_BAR = 22  # characters for all of the device's memory


def show_plan(
    totals: dict[str, float],
    plans: dict[str, LaunchPlan],
    device: Device,
    machines: Machines,
    *,
    rows: Rows,
    learning_rates: dict[str, float],
    transfer_note: str | None,
    efficiency: float,
    hour_price: float | None,
    kwh_price: float | None,
) -> None:
    """Print the totals of the training with its learning rates, memory by launch config as bars,
    what each costs in time, energy and money, and which is the fastest. Prices are in one currency.
    """
    _show_totals(totals | learning_rates)
    if transfer_note:
        print(transfer_note)
    for line in _notes(int(totals["tokens per step"]), machines, rows):
        print(line)
    show_memory(plans, device)
    costs = [
        {"config": name} | _costs(plan, totals["tokens"], device, machines, hour_price, kwh_price)
        for name, plan in plans.items()
        if plan["fits"]
    ]
    if not costs:
        return
    title = f"at {efficiency:.0%} of the peak rate, communication not hidden"
    if machines.number > 1:
        title += f", network {machines.network_gb_s * 8:g} Gbit/s"
    show_records(costs, title=title)
    for line in _verdict(plans):
        print(line)


def show_without_memory(
    totals: dict[str, float],
    device: Device,
    *,
    step: Step,
    architecture: str,
    num_gpus: int,
    precision: str,
    efficiency: float,
) -> None:
    """Print the totals of a training of which it is not known what it keeps for the backward pass,
    what is there from step to step, and the time of the computing alone.
    """
    _show_totals(totals)
    values = 4 + 4 + step.optimizer_bytes + (4 if step.averages_weights else 0)
    state_gb = values * totals["parameters"] / 1e9
    print(
        f"memory: {state_gb:,.2f} GB of weights, gradients and the optimizer's state in float32, "
        f"before any is split; activations and logits of {architecture} are not counted, so it is "
        f"not said what fits: {MEASURE_INSTEAD}"
    )
    rate = efficiency * (device.tflops(precision) or 0) * 1e12
    hours = totals["FLOPs"] / rate / 3600 / num_gpus
    print(
        f"hours: {number(hours)} on {num_gpus} GPUs at {efficiency:.0%} of the {precision} peak "
        "rate, without communication"
    )


def _show_totals(totals: dict[str, float]) -> None:
    width = max(map(len, totals))
    for name, value in totals.items():
        print(f"{name:<{width}}  {number(value)}")


def _notes(tokens_per_step: int, machines: Machines, rows: Rows) -> Iterable[str]:
    """What is to be said of machines, and of the tokens of a step where they are not those that
    were asked for.
    """
    if machines.number > 1:
        per_machine = machines.processes // machines.number
        yield f"machines: {machines.number} with {per_machine} GPUs each"
    if rows.asked_tokens is None and machines.processes > 1:
        yield (
            "tokens of a step grow with the GPUs, "
            f"{tokens_per_step // machines.processes:,} on each (--tokens_per_step sets them)"
        )
    if rows.asked_tokens not in (None, tokens_per_step):
        yield (
            f"the tokens of a step change: {rows.asked_tokens:,} are asked for, "
            f"{tokens_per_step:,} are planned on {machines.processes} GPUs; the learning rate may "
            "need another value"
        )


def show_memory(plans: dict[str, LaunchPlan], device: Device) -> None:
    """Print the memory of each launch config as a bar, and the largest micro-batch that fits."""
    totals = in_one_format([sum(plan["memory_bytes"].values()) / 1e9 for plan in plans.values()])
    table = [
        (
            name,
            _bar(plan["memory_bytes"], device),
            total,
            f"{plan['batch_size']} x {plan['gradient_accumulation_steps']}",
            str(plan["largest_batch_size"] or "none"),
        )
        for (name, plan), total in zip(plans.items(), totals, strict=True)
    ]
    memory_head = f"memory per GPU, of {device.memory_gb:g} GB"
    show_table(("config", memory_head, "GB", "micro-batch", "largest"), table)
    legend = [Text.assemble(("█", color), f" {part}") for part, color in COLORS.items()]
    for line in (legend[:4], legend[4:]):  # each fits into any terminal
        Console().print(Text("  ").join(line))


def _costs(
    plan: LaunchPlan,
    tokens: float,
    device: Device,
    machines: Machines,
    hour_price: float | None,
    kwh_price: float | None,
) -> dict[str, float]:
    """Time, energy and money of reading so many tokens."""
    hours = tokens / plan["tokens_per_second"] / 3600
    gpu_hours = hours * machines.processes
    kwh = gpu_hours * device.power_w / 1000
    costs = {
        "s/step": plan["step_seconds"],
        "tokens/s": round(plan["tokens_per_second"]),
        "hours": hours,
        "GPU-hours": gpu_hours,
        "kWh": kwh,
    }
    if hour_price or kwh_price:
        costs["price"] = gpu_hours * (hour_price or 0) + kwh * (kwh_price or 0)
    return costs


def _verdict(plans: dict[str, LaunchPlan]) -> Iterable[str]:
    """Which config is the fastest, and which one is launched where that is another."""
    first = fastest(plans)
    taken = recommended(plans)
    yield f"fastest: {first}"
    if taken != first:
        yield (
            f"taken: {taken}, within {NEAR - 1:.0%} of it, which these formulas cannot tell apart, "
            "and splits less"
        )


def _bar(memory_bytes: dict[str, int], device: Device) -> Text:
    """A character for each share of the device's memory; what is far beyond it is cut."""
    bar = Text()
    longest = TERMINAL_BAR + 2  # so that a bar beyond the device's memory shows
    for part, color in COLORS.items():
        share = memory_bytes[part] / device.memory_gb / 1e9
        bar.append("█" * round(min(TERMINAL_BAR * share, longest)), color)
    bar.truncate(longest, overflow="ellipsis")
    return bar


def check_picture(path: str) -> None:
    """Raise InputError unless a new PNG can be written there."""
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"picture {path}: expected a name that ends in .png")
    if os.path.lexists(path):
        raise InputError(f"picture {path}: exists; name another")
    check_writable(f"picture {path}", Path(path).parent, Path(path).name)


def check_no_picture(path: str | None, architecture: str) -> None:
    """Raise InputError where a picture is asked for."""
    if path:
        raise InputError(
            f"picture: shows memory, which is not planned for {architecture}; leave it out"
        )


def draw_memory(path: Path, plans: dict[str, LaunchPlan], device: Device, title: str) -> None:
    """Save a PNG: one stacked bar per launch config, and the device's memory as a line; `title`
    says what is trained on what. What takes no memory in any config is not in the legend.
    """
    # Matplotlib and NumPy are loaded only here: a plan without a picture is quick.
    from hfscale.report.pictures import bars, in_picture

    gb_by_part = {
        part: [plan["memory_bytes"][part] / 1e9 for plan in plans.values()] for part in COLORS
    }
    gb_by_part = {part: sizes for part, sizes in gb_by_part.items() if any(sizes)}
    totals = [sum(sizes) for sizes in zip(*gb_by_part.values(), strict=True)]
    labels = [
        f" {total:.1f} GB, micro-batch {plan['batch_size']}"
        for total, plan in zip(totals, plans.values(), strict=True)
    ]
    figure, axes = bars(list(plans), gb_by_part, labels, COLORS)
    axes.axvline(
        device.memory_gb,
        color="black",
        linestyle="--",
        linewidth=1,
        label=f"memory of one GPU, {device.memory_gb:g} GB",
    )
    axes.set(
        title=in_picture(title),
        xlabel="GB per GPU at the fullest moment",
        xlim=(0, 1.35 * max(device.memory_gb, *totals)),
    )
    axes.set_ylabel("launch config")
    axes.legend(fontsize=8, loc="lower right", title="what fills a GPU", title_fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
