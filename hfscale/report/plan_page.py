"""A plan on the terminal, and its memory as a picture."""

from pathlib import Path
from typing import Any

from hfscale.report.tables import number, show_records
from hfscale.scaling.plan import Accelerator


def show_plan(facts: dict[str, float], plans: dict[str, dict[str, Any]], best: str | None, device: Accelerator, *,
              efficiency: float, processes: int, kwh_price: float | None, hour_price: float | None) -> None:
    """Print the model's facts, memory by launch config and part, and what each costs in time, energy and money."""
    for name, value in facts.items():
        print(f"{name:<24}{number(value)}")
    show_records([{"config": name, "GB": sum(plan["memory_bytes"].values()) / 1e9,
                   "of which": ", ".join(f"{part} {size / 1e9:.1f}" for part, size in sorted(
                       plan["memory_bytes"].items(), key=lambda part: -part[1]) if size >= 5e7),
                   "micro-batch": f"{plan['batch_size']} x {plan['gradient_accumulation_steps']}",
                   "largest": plan["largest_batch_size"] or "does not fit"} for name, plan in plans.items()],
                 title=f"memory per GPU at the fullest moment, of {device.memory_gb:g} GB")
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


def draw_memory(path: Path, plans: dict[str, dict[str, Any]], device: Accelerator, title: str) -> None:
    """Save a PNG: one stacked bar per launch config, and the device's memory as a line."""
    from hfscale.report.pictures import bars  # NumPy and all: a plan without a picture is quick

    parts = next(iter(plans.values()))["memory_bytes"]
    gb = {part: [plan["memory_bytes"][part] / 1e9 for plan in plans.values()] for part in parts}
    totals = [sum(sizes) for sizes in zip(*gb.values(), strict=True)]
    labels = [f" {total:.1f} GB, micro-batch {plan['batch_size']}"
              for total, plan in zip(totals, plans.values(), strict=True)]
    figure, axes = bars(list(plans), gb, labels)
    axes.axvline(device.memory_gb, color="black", linestyle="--", linewidth=1, label="memory of the device")
    axes.set(title=title, xlabel="GB per GPU at the fullest moment", xlim=(0, 1.35 * max(device.memory_gb, *totals)))
    axes.legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
