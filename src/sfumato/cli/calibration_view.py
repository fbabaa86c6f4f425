"""A calibration in the terminal: where it goes, and a table of what was measured."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sfumato.errors import ConfigError
from sfumato.estimates import in_words
from sfumato.lm.folders import SHIPPED, find_folder
from sfumato.storage.publish import check_free

PICTURE = "calibration.png"


def target(model: str, out: Path | None) -> Path:
    """The folder whose generation_config.json will be changed; raise if that cannot be done."""
    if out is not None:
        check_free(out, ConfigError)
        return out
    folder = find_folder(model)
    given = Path(model).expanduser()
    own = given.is_dir() and folder == given and SHIPPED.resolve() not in folder.resolve().parents
    config = folder / "generation_config.json"
    if (
        not own
        or not os.access(folder, os.W_OK)
        or not os.access(config if config.exists() else folder, os.W_OK)
    ):
        raise ConfigError(
            f"the model {model} is not yours to change; give --out FOLDER for a copy of it with "
            "its own generation_config.json"
        )
    return folder


def copy_files(model: str, folder: Path, pattern: str) -> None:
    """Those files of a model in another folder."""
    for file in find_folder(model).glob(pattern):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def show(made: Mapping[str, Any], console: Console) -> None:
    """The table of settings, and what follows."""
    results = made["results"]
    options = made["settings"]["options"]
    judged = any(row.get("judge") for row in results["settings"])
    names = ("setting", "nats a token", "p", "safe", "tokens a pass", "tokens/s")
    table = Table(box=None, header_style="bold")
    for name in (*names, *(("perplexity", "entropy") if judged else ())):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for number, row in enumerate(results["settings"]):
        style = "bold" if number == results["chosen"] else None if row["safe"] else "dim"
        table.add_row(*_cells(row, judged), style=style)
    console.print(table)
    ends = [f"{results['settings'][results['reference']]['name']} is the reference"]
    if "own" in results:
        ends.append(f"{results['settings'][results['own']]['name']} is how it decodes now")
    console.print("; ".join(ends), soft_wrap=True)
    console.print(
        f"safe: at most {options['tolerance']:g} nats a token above the reference, over texts like "
        f"these {results['texts']}, all of them with confidence {options['confidence']:g}",
        soft_wrap=True,
    )
    console.print(results["reason"], soft_wrap=True)
    console.print(results["autoregression_says"], soft_wrap=True)


def _cells(row: Mapping[str, Any], judged: bool) -> list[str]:
    excess, verdict = row.get("excess"), row.get("judge")
    cells = [
        row["name"],
        "" if excess is None else in_words(float(excess["value"]), float(excess["error"]), 4, "+"),
        f"{row['p_value']:.2g}" if "p_value" in row else "",
        "yes" if row["safe"] else "",
        f"{row['tokens_per_forward']:.2f}",
        f"{row['tokens_per_second']:.0f}",
    ]
    if judged and verdict:
        cells += [
            f"{float(verdict['perplexity']['value']):.2f}",
            f"{float(verdict['entropy']):.2f}",
        ]
    return cells
