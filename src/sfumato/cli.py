"""The command line: one function a command. Only this file prints.

Everything heavy is imported inside the command that needs it, so that `--help` answers at once.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sfumato.errors import ConfigError, SfumatoError

if TYPE_CHECKING:
    from rich.console import Console

    from sfumato.pipeline import DiffusionLM, Page

app = typer.Typer(
    help="Diffusion language models: write, train, prove and evaluate them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tokenizer_app = typer.Typer(help="Make tokenizers.", no_args_is_help=True)
data_app = typer.Typer(help="Prepare text for training.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")


def main() -> NoReturn:
    """Run a command; a user's mistake is one line and exit code 1, an interrupt is 130."""
    try:
        app(standalone_mode=True)
    except SfumatoError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.secho("interrupted", err=True)
        sys.exit(130)
    sys.exit(0)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("sfumato"))
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


ModelOption = Annotated[str, typer.Option("--model", "-m", help="Folder, hub name, or 'stories'.")]
SeedOption = Annotated[int | None, typer.Option(help="The same seed writes the same text.")]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to go on from; none: from nothing.")] = "",
    model: ModelOption = "stories",
    infill: Annotated[
        str | None, typer.Option(help="Fill the gaps (____) of this text instead.")
    ] = None,
    gap_length: Annotated[int, typer.Option(help="Tokens for each gap.")] = 16,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", help="Texts to write.")] = 1,
    length: Annotated[
        int | None, typer.Option(help="New tokens; none: the rest of the canvas.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; none: the model's.")] = None,
    step: Annotated[str | None, typer.Option(help="Step rule, such as ancestral, margin.")] = None,
    step_option: Annotated[
        list[str] | None, typer.Option(help="The rule's own, such as level=0.8; repeatable.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", help="0: greedy.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the nucleus of this mass.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens this near the likeliest.")
    ] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: repeat less.")] = None,
    block: Annotated[int | None, typer.Option(help="Decode in blocks of this size.")] = None,
    seed: SeedOption = None,
    live: Annotated[bool, typer.Option(help="Show the page while it is written.")] = True,
    trajectory: Annotated[
        Path | None, typer.Option(help="Write every page to this JSON-lines file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "cpu",
) -> None:
    """Write text, live in the terminal as it emerges from noise."""
    if prompt and infill is not None:
        raise ConfigError("give a prompt or --infill, not both")
    changes = {
        "length": length,
        "num_steps": steps,
        "step": step,
        "step_options": _pairs(step_option or []) or None,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "block": block,
        "seed": seed,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    lm = _load(model, device)
    if infill is None:
        task = lm.start(prompt, num_samples=num_samples, **changes)
    else:
        task = lm.start_infill(infill, gap_length=gap_length, num_samples=num_samples, **changes)
    console = _console()
    pages = lm.run(task)
    if trajectory is not None:
        pages = _traced(lm, pages, trajectory)
    if live and not as_json and console.is_terminal:
        from sfumato.live import watch

        pages = watch(lm, pages, task.num_steps, console)
    begin = time.perf_counter()
    last = next(pages)
    for last in pages:  # noqa: B007 (the last page is the result)
        pass
    seconds = time.perf_counter() - begin
    result = lm.finish(task, last)
    if as_json:
        facts = {"seconds": round(seconds, 3), "model": model}
        typer.echo(json.dumps(facts | result.as_dict(), ensure_ascii=False))
        return
    for row, text in enumerate(result.full_texts):
        if live and console.is_terminal:
            from sfumato.live import paint

            console.print(paint(lm, last, row, last.step), end="\n\n")
        else:
            typer.echo(text)
    new = sum(map(len, result.tokens))
    console.print(
        f"{result.num_steps} steps, {new} tokens, {seconds:.1f} s, seed {result.seed}",
        style="dim",
        highlight=False,
    )


@tokenizer_app.command("train")
def tokenizer_train(
    source: Annotated[str, typer.Argument(help="File, folder, or hub data set.")],
    out: Annotated[Path, typer.Argument(help="Folder for the tokenizer.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens, special ones included.")] = 8192,
    field: Annotated[str, typer.Option(help="Column or key of the text.")] = "text",
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    limit: Annotated[int | None, typer.Option(help="Documents to learn from, at most.")] = None,
) -> None:
    """Learn a byte-level BPE tokenizer."""
    from sfumato.data.sources import Source
    from sfumato.data.text import TRAINING_CHARACTERS
    from sfumato.data.tokenizer import save_tokenizer, train_tokenizer

    texts = Source(source, field=field, split=split, limit=limit).sample(TRAINING_CHARACTERS)
    tokenizer = train_tokenizer(texts, vocab_size)
    save_tokenizer(tokenizer, out)
    typer.echo(f"{len(tokenizer)} tokens in {out}")


@data_app.command("prepare")
def data_prepare(
    source: Annotated[str, typer.Argument(help="File, folder, or hub data set.")],
    out: Annotated[Path, typer.Argument(help="Folder for the prepared data.")],
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub name of one.")] = None,
    add_mask_token: Annotated[bool, typer.Option(help="If it has none.")] = False,
    vocab_size: Annotated[int | None, typer.Option(help="Or: train one of this size.")] = None,
    validation: Annotated[float, typer.Option(help="Share of the text to hold out.")] = 0.05,
    field: Annotated[str, typer.Option(help="Column or key of the text.")] = "text",
    separator: Annotated[
        str | None, typer.Option(help="Line that ends a document in .txt files.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    config: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
    streaming: Annotated[bool, typer.Option(help="Stream a hub data set.")] = True,
    limit: Annotated[int | None, typer.Option(help="Documents, at most.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; none: one a core.")] = None,
) -> None:
    """Tokenize text into memory-mapped files. Run it again after a kill and it goes on."""
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    from sfumato.data.sources import Source
    from sfumato.data.text import prepare
    from sfumato.data.tokenizer import load_tokenizer

    if add_mask_token and tokenizer is None:
        raise ConfigError("--add-mask-token is for a tokenizer given by --tokenizer")
    if tokenizer is None and vocab_size is None:
        vocab_size = 8192
    options: dict[str, Any] = {"field": field, "split": split, "config": config}
    if separator is not None:
        options["separator"] = separator
    wanted = Source(source, streaming=streaming, limit=limit, **options)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=_console(), transient=True) as bar:
        task = bar.add_task("reading")

        def show(progress: Any) -> None:
            counts = f"{progress.documents:,} documents, {progress.tokens:,} tokens"
            bar.update(task, description=counts)

        done = prepare(
            wanted,
            out,
            load_tokenizer(tokenizer, add_mask_token=add_mask_token) if tokenizer else None,
            vocab_size=vocab_size,
            validation=validation,
            workers=workers,
            progress=show,
        )
    typer.echo(json.dumps(done.facts, indent=2))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A YAML or JSON run file.")],
) -> None:
    """Train a model: sfumato train RUN.yaml train.max_steps=500 ..."""
    from sfumato.train import load_run
    from sfumato.train.trainer import train as events
    from sfumato.training_view import show

    show(events(load_run(run, context.args)), _console())


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder, hub name, or 'stories'.")],
    data: Annotated[str, typer.Argument(help="Prepared folder, or texts as for data prepare.")],
    rows: Annotated[int, typer.Option(help="Held-out texts or rows, at most.")] = 256,
    num_samples: Annotated[int, typer.Option(help="Random maskings of each row.")] = 8,
    exact: Annotated[
        bool, typer.Option(help="Also the exact likelihood under the step rule (slow).")
    ] = False,
    step: Annotated[str | None, typer.Option(help="Step rule for --exact and --judge.")] = None,
    num_steps: Annotated[int | None, typer.Option(help="Its steps.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="Causal model that judges generated texts.")
    ] = None,
    num_texts: Annotated[int, typer.Option(help="Texts to generate for the judge.")] = 64,
    temperature: Annotated[float | None, typer.Option(help="For generation.")] = None,
    seed: Annotated[int, typer.Option(help="Of maskings and texts.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the JSON here too.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "cpu",
) -> None:
    """Measure a model: likelihood bound, accuracy and, with a judge, its texts."""
    from sfumato.evals.evaluate import EvaluateOptions
    from sfumato.evals.evaluate import evaluate as measure
    from sfumato.evals.record import write

    lm = _load(model, device)
    options = EvaluateOptions(
        rows=rows,
        num_samples=num_samples,
        exact=exact,
        step=step,
        num_steps=num_steps,
        judge=judge,
        num_texts=num_texts,
        temperature=temperature,
        seed=seed,
    )
    result = measure(lm, data, options, model_name=model)
    if out is not None:
        write(result, out)
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False))


@app.command()
def doctor() -> None:
    """Say what is installed, which device is used, and what is missing."""
    from rich.markup import escape
    from rich.table import Table

    from sfumato.doctor import examine

    findings = examine()
    table = Table(box=None, show_header=False, pad_edge=False)
    marks = {"ok": "[green]ok[/]", "missing": "[red]missing[/]", "note": "[yellow]note[/]"}
    for finding in findings:
        table.add_row(marks[finding.state], finding.name, escape(finding.detail))
    _console().print(table)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=False)


def _load(name: str, device: str) -> "DiffusionLM":
    from transformers.utils import logging

    from sfumato.pipeline import DiffusionLM

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return DiffusionLM.from_pretrained(name, device=device)


def _pairs(texts: list[str]) -> dict[str, float]:
    """["level=0.8"] -> {"level": 0.8}; whole numbers stay whole."""
    values: dict[str, float] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            sign = ""
        if not sign:
            raise ConfigError(f"expected name=number, such as level=0.8, got '{text}'")
        values[name] = int(number) if number.is_integer() and "." not in value else number
    return values


def _traced(lm: "DiffusionLM", pages: Iterator["Page"], path: Path) -> Iterator["Page"]:
    """Write every page as one line of JSON while it passes by."""
    with path.open("w", encoding="utf-8") as file:
        for page in pages:
            rows = range(len(page.canvas.tokens))
            record = {
                "step": page.step,
                "texts": [lm.show(page, row) for row in rows],
                "tokens": page.canvas.tokens.tolist(),
                "noisy": page.canvas.noisy.int().tolist(),
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            yield page


if __name__ == "__main__":
    main()
