"""Draw docs/order.png and docs/frontier.png, pictures of docs/how.md: python docs/pictures.py

In which step each position of a text was decided, by four ways of writing with the shipped models,
and the frontier of the calibration beside `stories`. Half a minute on one core; float32, so that
every processor draws the same.
"""

import json
from importlib.resources import files
from pathlib import Path

from matplotlib.figure import Figure

from sfumato import DiffusionLM

DOCS = Path(__file__).parent
WAYS = {  # title: model, options
    "stories-infill, margin": ("stories-infill", {"step": "margin", "block": 256}),
    "stories-infill, random": ("stories-infill", {"step": "random", "block": 256}),
    "stories-infill, left_to_right": ("stories-infill", {"step": "left_to_right", "block": 256}),
    "stories: blocks of 8, its own rule": ("stories", {}),
}


def decided(model: str, options: dict) -> list[int]:
    """The step that decided each of 64 new tokens."""
    lm = DiffusionLM.from_pretrained(model, device="cpu")
    *_, last = lm.stream("One day, a cat", length=64, seed=3, precision="fp32", **options)
    return [step for step in last.decided[0].tolist() if step > 0]  # 0: the prompt's own


def order(path: Path) -> None:
    """Positions from left to right, steps from top to bottom, one dot a token."""
    figure = Figure(figsize=(10, 3.1), dpi=100, layout="constrained")
    for axes, (title, (model, options)) in zip(
        figure.subplots(1, 4, sharey=True), WAYS.items(), strict=True
    ):
        steps = decided(model, options)
        axes.scatter(range(len(steps)), steps, 9, c=steps, cmap="plasma", vmax=72)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("position")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("step that decided it")
    figure.axes[0].invert_yaxis()
    figure.savefig(path)


def frontier(record: dict, path: Path) -> None:
    """What every measured setting loses against how many tokens it decides in a pass."""
    families: dict[str, list[tuple[float, float]]] = {}
    for row in record["results"]["settings"]:
        if "excess" in row:
            name = row["setting"]["step"]
            shared = " in n steps" if row["setting"]["num_steps"] else ""
            families.setdefault(name + shared, []).append(
                (row["tokens_per_forward"], row["excess"]["value"])
            )
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(families.items()):
        axes.plot(*zip(*sorted(points), strict=True), "osD^v<>*"[number % 8] + "-", label=name)
    axes.set(xlabel="tokens a pass, of one text", ylabel="nats a token above one token a pass")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    order(DOCS / "order.png")
    record = files("sfumato") / "shipped" / "stories" / "calibration.json"
    frontier(json.loads(record.read_text(encoding="utf-8")), DOCS / "frontier.png")
