"""A plan on the terminal, and its memory as a picture."""

from pathlib import Path
from typing import Any

from rich.text import Text

from hfscale.report.tables import number, show_records, show_table
from hfscale.scaling.plan import Accelerator

COLORS = {"weights": "#4878a8", "bf16 copies": "#9ac1e0", "gradients": "#d98c40", "optimizer": "#7a5ba6",
          "activations": "#5ba66b", "logits": "#c95d5d", "communication": "#8c8c8c"}
TERMINAL_BAR = 30  # characters for all of the device's memory


def show_plan(facts: dict[str, float], plans: dict[str, dict[str, Any]], best: str | None, device: Accelerator, *,
              efficiency: float, processes: int, kwh_price: float | None, hour_price: float | None) -> None:
    """Print the model's facts, memory by launch config as bars, and what each costs in time, energy and money."""
    for name, value in facts.items():
        print(f"{name:<24}{number(value)}")
    legend = "  ".join(f"[{color}]█[/] {part}" for part, color in COLORS.items())
    show_table(("config", f"memory per GPU, of {device.memory_gb:g} GB", "GB", "micro-batch", "largest"), [
        (name, _bar(plan["memory_bytes"], device), number(sum(plan["memory_bytes"].values()) / 1e9),
         f"{plan['batch_size']} x {plan['gradient_accumulation_steps']}",
         str(plan["largest_batch_size"] or "does not fit")) for name, plan in plans.items()], caption=legend)
    costs = []
    for name, plan in plans.items():
        if plan["fits"]:
            hours = facts["tokens"] / plan["tokens_per_second"] / 3600
            kwh = hours * processes * device.power_w / 1000
            price = hours * processes * (hour_price or 0) + kwh * (kwh_price or 0)
            costs.append({"config": f"{name} (fastest)" if name == best else name, "s/step": plan["step_seconds"],
                          "tokens/s": round(plan["tokens_per_second"]), "hours": hours,
                          "GPU-hours": hours * processes, "kWh": kwh,
                          "price": price if hour_price or kwh_price else "not given"})
    show_records(costs, title=f"at {efficiency:.0%} of the peak rate, {device.power_w:g} W a GPU, communication not "
                              "hidden")


def _bar(memory_bytes: dict[str, int], device: Accelerator) -> Text:
    bar = Text()
    for part, color in COLORS.items():
        bar.append("█" * round(TERMINAL_BAR * memory_bytes[part] / device.memory_gb / 1e9), color)
    bar.truncate(TERMINAL_BAR + 10, overflow="ellipsis")
    return bar


def draw_memory(path: Path, plans: dict[str, dict[str, Any]], device: Accelerator, title: str) -> None:
    """Save a PNG: one stacked bar per launch config, and the device's memory as a line."""
    from hfscale.report.pictures import bars  # NumPy and all: a plan without a picture is quick

    gb = {part: [plan["memory_bytes"][part] / 1e9 for plan in plans.values()] for part in COLORS}
    totals = [sum(sizes) for sizes in zip(*gb.values(), strict=True)]
    labels = [f" {total:.1f} GB, micro-batch {plan['batch_size']}"
              for total, plan in zip(totals, plans.values(), strict=True)]
    figure, axes = bars(list(plans), gb, labels, COLORS)
    axes.axvline(device.memory_gb, color="black", linestyle="--", linewidth=1, label="memory of the device")
    axes.set(title=title, xlabel="GB per GPU at the fullest moment", xlim=(0, 1.35 * max(device.memory_gb, *totals)))
    axes.legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
