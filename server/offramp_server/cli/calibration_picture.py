"""Agreement against cost, as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from offramp_server.cli.calibration import Calibration


def draw(found: Calibration, wanted: float, path: Path) -> None:
    """The curve on the examples that nothing was chosen on, and the choice on both halves."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    cost = found.reference_cost
    unseen = [point for _, point in found.curve]
    costs, agreements = [point.cost / cost for point in unseen], [100 * point.agreement for point in unseen]
    axes.plot(costs, agreements, lw=1, label="other choices, on unseen examples")
    for point, marker, words in (
        (found.unseen, "o", "chosen, on unseen examples"),
        (found.chosen, "x", "where chosen"),
    ):
        axes.plot(point.cost / cost, 100 * point.agreement, marker, label=words)
    axes.axhline(100 * wanted, color="0.6", lw=1, ls="--", label=f"wanted: {wanted:.2%}")
    axes.set_xlabel("cost of an item; 1 is the last stage alone")
    axes.set_ylabel("agreement with the last stage, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
