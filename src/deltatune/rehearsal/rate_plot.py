"""Rate plot: the range test as one PNG."""

from pathlib import Path

from deltatune.rehearsal.rates import Sweep


def draw(found: Sweep, rate: float, png: Path, *, of: str) -> None:
    """Loss over rate, the suggested range and the config's rate; raises `ModuleNotFoundError` without matplotlib."""
    from matplotlib.figure import Figure  # without pyplot: no backend of the machine's, nothing to close

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.1, right=0.97, bottom=0.13, top=0.91)
    axes.plot(found.rates[: len(found.losses)], found.losses, color="tab:blue", marker=".", label="loss (smoothed)")
    axes.set_xscale("log")
    axes.set_ylim(0, min(max(found.losses) * 1.1, 2.5))
    axes.axhline(1.0, color="0.8", lw=1, zorder=0)
    if found.fell:
        low, high = found.suggested
        axes.axvspan(low, high, color="tab:green", alpha=0.15, label=f"suggested: {low:.1e} to {high:.1e}")
        if found.diverges_at is not None:
            axes.axvline(found.diverges_at, color="tab:red", lw=1, ls="--", label=f"flies off: {found.diverges_at:.1e}")
    axes.axvline(rate, color="black", lw=1.5, label=f"in the config: {rate:.1e}")
    axes.set(xlabel="learning rate", ylabel="loss / loss before", title=f"Learning-rate range test, {of}")
    axes.legend(frameon=False, loc="best")
    figure.savefig(png, dpi=130)
