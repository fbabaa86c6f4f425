"""A calibration as a picture: quality against tokens a pass, and against tokens a second."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure_class() -> type["Figure"]:
    """Matplotlib's; asked for before hours of work."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots", "the picture of a calibration") from error
    return Figure


def draw(made: Mapping[str, Any], path: str | Path) -> None:
    """Write the frontier as a PNG."""
    judged = any(row.get("judge") for row in made["results"]["settings"])
    rows = 2 if judged else 1
    figure = figure_class()(figsize=(12, 4.6 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False)
    across = {
        "tokens_per_forward": "tokens a forward pass",
        "tokens_per_second": "tokens a second, on this machine",
    }
    for column, (key, label) in enumerate(across.items()):
        _panel(panels[0][column], made, key, _excess)
        panels[0][column].set(xlabel=label, ylabel="nats a token above one token a pass")
        if judged:
            _panel(panels[1][column], made, key, _perplexity)
            panels[1][column].set(xlabel=label, ylabel="perplexity of its texts, by the judge")
    options = made["settings"]["options"]
    for axes in panels[0]:
        axes.axhline(options["tolerance"], color="0.5", linestyle="--", linewidth=1)
        axes.set_ylim(top=max(4 * options["tolerance"], 0.01))
    speed = made["results"]["autoregression"]["tokens_per_second"]
    for line in panels:
        line[1].axvline(speed, color="0.5", linestyle=":", linewidth=1, label="autoregression")
        line[1].set_xscale("log")
    panels[0][1].legend(fontsize=7)
    figure.suptitle(
        f"filled: within {options['tolerance']:g} nats with confidence {options['confidence']:g}; "
        "star: chosen",
        fontsize=9,
    )
    figure.savefig(path)


def _excess(row: Mapping[str, Any]) -> tuple[float, float] | None:
    found = row.get("excess")
    return None if found is None else (float(found["value"]), float(found["error"]))


def _perplexity(row: Mapping[str, Any]) -> tuple[float, float] | None:
    found = row.get("judge")
    return (
        None if not found else (found["perplexity"]["value"], float(found["perplexity"]["error"]))
    )


def _panel(axes: "Axes", made: Mapping[str, Any], across: str, up: Any) -> None:
    results = made["results"]
    rows: Sequence[Mapping[str, Any]] = results["settings"]
    for number in range(results["families"]):
        family = [row for row in rows if row.get("family") == number and up(row) is not None]
        if not family:
            continue
        setting = family[0]["setting"]
        block = f", blocks of {setting['block']}" if setting["block"] else ""
        x = [row[across] for row in family]
        y, error = zip(*(up(row) for row in family), strict=True)
        colour = f"C{number % 10}"
        axes.errorbar(
            *(x, y, error), color=colour, linewidth=1, label=f"{setting['step']}{block}", alpha=0.8
        )
        face = [colour if row["safe"] else "white" for row in family]
        axes.scatter(x, y, 18, facecolors=face, edgecolors=colour, zorder=3)
    ends = {"reference": "s", "in_order": "<", "own": "D"}
    for name, marker in ends.items():
        if name in results and up(rows[results[name]]) is not None:
            row = rows[results[name]]
            axes.scatter(
                row[across], up(row)[0], 28, color="black", marker=marker, label=row["name"]
            )
    if results["chosen"] is not None:
        row = rows[results["chosen"]]
        axes.scatter(row[across], up(row)[0], 170, color="black", marker="*", zorder=4)
    axes.grid(alpha=0.3)
