"""`sfumato init`: a run file for one's data and device, every key in it with what it means."""

import math
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from sfumato.cli.terminal import show_status
from sfumato.errors import ConfigError

PASSES = 10  # over the data, at most
CANVASES = (32, 64, 128, 256)  # tokens of a row


def init(
    data: Annotated[Path, typer.Argument(help="Prepared data, as data prepare makes them.")],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="Run file to write.", show_default="standard output"),
    ] = None,
) -> None:
    """Write a run file for your data and device: every key of it, and what it means."""
    if out is not None and out.exists():
        raise ConfigError(f"{out} is there already; give a new file")
    with show_status("looking at the data"):
        from sfumato.data.prepared_pairs import PreparedPairs, open_data
        from sfumato.devices import find_device

        found = open_data(data)
        pairs = isinstance(found, PreparedPairs)
        facts = (found.targets if pairs else found).facts
        device = find_device("auto").type
    text = written(data, facts["splits"]["train"], device, out)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}; give another place") from None
    typer.echo(f"{out}: now sfumato train {out}")


def written(data: Path, train: Mapping[str, Any], device: str, run: Path | None) -> str:
    """The text of a run file: keys that are chosen for these data, and the rest as comments."""
    from sfumato.cli.keys import Key, keys_of, names_of, sections

    lengths = train["lengths"]
    longest = lengths.get("p95", CANVASES[-1])
    length = next((size for size in CANVASES if size >= longest), CANVASES[-1])
    rows = train["documents"] if longest <= length else -(-train["tokens"] // length)
    batch = 16 if device == "cpu" else 64
    most = 3200 if device == "cpu" else 20_000
    steps = max(20, min(most, PASSES * rows // batch))
    chosen = {
        "output": f"runs/{data.resolve().name}",
        "data.folder": str(data),
        "data.length": length,
        "data.layout": "padded" if longest <= length else "packed",
        "model.size": "tiny" if device == "cpu" else "small",
        "train.max_steps": steps,
        "train.batch_size": batch,
        "train.warmup_steps": min(100, steps // 10),
        "train.save_steps": max(1, steps // 10),
        "evaluate.eval_steps": max(1, steps // 10),
        "samples.sample_steps": max(1, steps // 4),
    }
    why = {
        "data.length": f"95 % of the documents have up to {longest} tokens",
        "data.layout": "padded: one document a row, whose end is learnt; packed: rows are full",
        "train.max_steps": f"{steps * batch / max(rows, 1):.1f} passes over {rows:,} rows",
        "train.batch_size": f"rows a step, over all processes; for {device}",
    }

    by_section = {name: keys_of(name) for name in sections()}
    # a section has at least one key that is no comment, or what is uncommented in it is lost
    first = {
        keys[0].name
        for name, keys in by_section.items()
        if name and "." not in name and not any(key.name in chosen for key in keys)
    }

    def lines(key: Key, deep: int) -> Iterator[str]:
        last = key.name.rpartition(".")[2]
        if key.name in chosen:
            line = yaml.safe_dump(
                {last: chosen[key.name]}, allow_unicode=True, width=math.inf
            ).strip()
        else:
            value = "null" if key.default is None else key.value
            line = f"{'' if key.name in first else '#'}{last}: {value}"
        about = why.get(key.name) or key.meaning or key.kind
        about = "; ".join(filter(None, (about, names_of(key.name))))
        line = " " * deep + line
        if len(line) + len(about) <= 92:
            yield f"{line:{deep + 28}}  # {about}"
            return
        for part in textwrap.wrap(about, 92 - deep):
            yield f"{' ' * deep}# {part}"
        yield line

    head = f"""\
# A run on {data}: {train["documents"]:,} documents, {train["tokens"]:,} tokens; for {device}.
#
#   sfumato train {run or "THIS-FILE"} [KEY=VALUE ...]
#
# What is set here was chosen for these data; every other key stands as a comment with its default.
"""
    parts = [head]
    for name, keys in by_section.items():
        deep = 2 * len(name.split(".")) if name else 0
        begin = "#" if "." in name else ""  # a section within another is not there unless asked for
        title = f"{' ' * max(deep - 2, 0)}{begin}{name.rpartition('.')[2]}:" if name else ""
        body = [line for key in keys for line in lines(key, deep)]
        parts.append("\n".join([title, *body] if title else body) + "\n")
    return "\n".join(parts)
