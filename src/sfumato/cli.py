"""The command line: one function a command. Only this file prints.

Texts and results go to standard output, everything about them to standard error. All that is heavy
is imported inside the command that needs it, so that `--help` answers at once.
"""

import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sfumato.errors import ConfigError, DataError, SfumatoError

if TYPE_CHECKING:
    from rich.console import Console

    from sfumato.data.sources import Source
    from sfumato.pages import Page, Reader
    from sfumato.pipeline import DiffusionLM

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
        app()
    except SfumatoError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
    except OSError as error:  # a full disk, a folder without permission
        place = f"{error.filename}: " if error.filename else ""
        typer.secho(f"error: {place}{error.strerror or error}", fg="red", err=True)
    sys.exit(1)


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


STEP_NAMES = (
    "ancestral, first_hitting, random, left_to_right, confidence, probability, margin, entropy, "
    "threshold, factor, entropy_bound, klass, remask_cap, remask_rescale, remask_confidence, "
    "remask_loop, wino"
)
MODEL = "Folder, hub name, or 'stories', the one that comes with sfumato."
ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL)]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
FieldOption = Annotated[str, typer.Option(help="Column or key of the text.")]
SeparatorOption = Annotated[
    str | None, typer.Option(help="Line that ends a document in .txt files.")
]
SplitOption = Annotated[str, typer.Option(help="Split of a hub data set.")]
ConfigOption = Annotated[str | None, typer.Option(help="Configuration of a hub data set.")]
LimitOption = Annotated[int | None, typer.Option(help="Documents, at most.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to go on from; none: from nothing.")] = "",
    model: ModelOption = "stories",
    infill: Annotated[
        str | None, typer.Option(help="Fill the gaps (____) of this text instead.")
    ] = None,
    gap_length: Annotated[
        int | None, typer.Option(help="Tokens for each gap.", show_default="16")
    ] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", help="Texts to write.")] = 1,
    length: Annotated[
        int | None, typer.Option(help="New tokens; none: the rest of the canvas.")
    ] = None,
    num_steps: Annotated[
        int | None,
        typer.Option("--num-steps", "--steps", help="Steps; none: one for every new token."),
    ] = None,
    step: Annotated[
        str | None, typer.Option(help=f"Step rule: {STEP_NAMES}. None: the model's own.")
    ] = None,
    step_option: Annotated[
        list[str] | None, typer.Option(help="The rule's own, such as level=0.8; repeatable.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", help="0: greedy.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the nucleus of this mass.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens at least this share as likely as the best.")
    ] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: repeat less.")] = None,
    suppress: Annotated[
        list[int] | None, typer.Option(help="Id of a token never to write; repeatable.")
    ] = None,
    block: Annotated[int | None, typer.Option(help="Decode in blocks of this size.")] = None,
    lookahead: Annotated[
        bool | None, typer.Option(help="A block sees what follows it.", show_default="lookahead")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    live: Annotated[bool, typer.Option(help="Show the page while it is written.")] = True,
    trajectory: Annotated[
        Path | None, typer.Option(help="Write every page to this JSON-lines file.")
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Write text, live in the terminal as it emerges from noise."""
    changes = {
        "length": length,
        "num_steps": num_steps,
        "step": step,
        "step_options": _pairs(step_option or []) or None,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "suppress": tuple(suppress) if suppress else None,
        "block": block,
        "lookahead": lookahead,
        "seed": seed,
        "gap_length": gap_length,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if prompt and infill is not None:
        raise ConfigError("give a prompt or --infill, not both")
    if infill is None and gap_length is not None:
        raise ConfigError("--gap-length is for --infill; the length of a new text is --length")
    lm = _load(model, device)
    begin = time.perf_counter()
    if infill is None:
        pages = lm.run(lm.start(prompt, num_samples=num_samples, **changes))
    else:
        pages = lm.run(lm.start_infill(infill, num_samples=num_samples, **changes))
    if trajectory is not None:
        pages = _traced(lm.reader, pages, trajectory)
    screen = _console()
    coloured = live and not as_json and screen.is_terminal
    last = _last(lm.reader, pages, screen if coloured else None)
    seconds = time.perf_counter() - begin
    result = lm.finish(last)
    if as_json:
        facts = {"model": model, "seconds": round(seconds, 3)}
        typer.echo(json.dumps(facts | result.as_dict(), ensure_ascii=False))
        return
    for row, text in enumerate(result.full_texts):
        if coloured:
            from sfumato.live import paint

            screen.print(paint(lm.reader, last, row), end="\n\n")
        else:
            typer.echo(text)
    count = sum(map(len, result.tokens))
    told = f"{result.num_steps} steps, {count} tokens, {seconds:.1f} s, seed {result.seed}"
    typer.secho(told, dim=True, err=True)


def _last(reader: "Reader", pages: Iterator["Page"], screen: "Console | None") -> "Page":
    """Write to the end, on the screen if there is one."""
    if screen is not None:
        from sfumato.live import watch

        pages = watch(reader, pages, screen)
    return deque(pages, maxlen=1)[0]


@tokenizer_app.command("train")
def tokenizer_train(
    source: Annotated[str, typer.Argument(help="File, folder, or hub data set.")],
    out: Annotated[Path, typer.Argument(help="Folder for the tokenizer.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens, special ones included.")] = 8192,
    field: FieldOption = "text",
    separator: SeparatorOption = None,
    split: SplitOption = "train",
    config: ConfigOption = None,
    limit: LimitOption = None,
) -> None:
    """Learn a byte-level BPE tokenizer."""
    from sfumato.data.text import TRAINING_CHARACTERS
    from sfumato.data.tokenizer import save_tokenizer, train_tokenizer

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there already; give a new or an empty folder")
    wanted = _source(
        source, field=field, separator=separator, split=split, config=config, limit=limit
    )
    with _status("learning"):
        tokenizer = train_tokenizer(wanted.sample(TRAINING_CHARACTERS), vocab_size)
    save_tokenizer(tokenizer, out)
    fewer = f", not {vocab_size:,}: there is little text" if len(tokenizer) < vocab_size else ""
    typer.echo(f"{len(tokenizer):,} tokens{fewer}: {out}")


@data_app.command("prepare")
def data_prepare(
    source: Annotated[str, typer.Argument(help="File, folder, or hub data set.")],
    out: Annotated[Path, typer.Argument(help="Folder for the prepared data.")],
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub name of one.")] = None,
    add_mask_token: Annotated[bool, typer.Option(help="If it has none.")] = False,
    vocab_size: Annotated[
        int | None, typer.Option(help="Or: train one of this size.", show_default="8192")
    ] = None,
    validation: Annotated[float, typer.Option(help="Share of the text to hold out.")] = 0.05,
    field: FieldOption = "text",
    separator: SeparatorOption = None,
    split: SplitOption = "train",
    config: ConfigOption = None,
    streaming: Annotated[bool, typer.Option(help="Stream a hub data set.")] = True,
    limit: LimitOption = None,
    workers: Annotated[int | None, typer.Option(help="Threads; none: one a core.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tokenize text into memory-mapped files. Run it again after a kill and it goes on."""
    from sfumato.data.text import prepare
    from sfumato.data.tokenizer import load_tokenizer

    if add_mask_token and tokenizer is None:
        raise ConfigError("--add-mask-token is for a tokenizer given by --tokenizer")
    if tokenizer is None and vocab_size is None:
        vocab_size = 8192
    wanted = _source(
        source,
        field=field,
        separator=separator,
        split=split,
        config=config,
        streaming=streaming,
        limit=limit,
    )
    with _status("reading") as tell:
        done = prepare(
            wanted,
            out,
            load_tokenizer(tokenizer, add_mask_token=add_mask_token) if tokenizer else None,
            vocab_size=vocab_size,
            validation=validation,
            workers=workers,
            progress=lambda p: tell(f"{p.documents:,} documents, {p.tokens:,} tokens"),
        )
    if as_json:
        typer.echo(json.dumps(done.facts, indent=2, ensure_ascii=False))
        return
    for name, counts in done.facts["splits"].items():
        lengths = counts["lengths"]
        typer.echo(
            f"{name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{counts['bytes_per_token']:.2f} bytes a token"
            + (f", {lengths['p50']:,} tokens in the median document, " if lengths else "")
            + (f"{lengths['p100']:,} in the longest" if lengths else "")
        )
    typer.echo(f"{done.facts['tokenizer']['vocab_size']:,} tokens in the vocabulary: {out}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A YAML or JSON run file.")],
) -> None:
    """Train a model: sfumato train RUN.yaml train.max_steps=500 ..."""
    with _status("starting"):
        from accelerate.utils import get_cpu_distributed_information

        from sfumato.train import load_run
        from sfumato.train.trainer import train as events

        wanted = load_run(run, context.args)
    from sfumato.train.events import Interrupted
    from sfumato.training_view import Signals, show

    screen = _console(quiet=get_cpu_distributed_information().rank != 0)  # of many one prints
    try:
        with Signals() as stop:
            last = show(events(wanted, stop), screen, wanted.log.logging_steps)
    except KeyboardInterrupt:
        typer.echo("interrupted; give the same command again to go on", err=True)
        raise typer.Exit(130) from None
    if isinstance(last, Interrupted):
        raise typer.Exit(128 + (stop.number or signal.SIGTERM))  # it may have come to another one


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: Annotated[str, typer.Argument(help="Prepared folder, or texts as for data prepare.")],
    rows: Annotated[int, typer.Option(help="Held-out texts or rows, at most.")] = 256,
    num_samples: Annotated[int, typer.Option(help="Random maskings of each row.")] = 8,
    exact: Annotated[
        bool, typer.Option(help="Also the exact likelihood under the step rule (slow).")
    ] = False,
    step: Annotated[
        str | None, typer.Option(help="Step rule of --exact (none: margin) and of the texts.")
    ] = None,
    num_steps: Annotated[
        int | None, typer.Option("--num-steps", "--steps", help="Its steps.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Its temperature.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="Causal model that judges generated texts, by path.")
    ] = None,
    num_texts: Annotated[int, typer.Option(help="Texts to generate for the judge.")] = 64,
    seed: Annotated[int, typer.Option(help="Of maskings and texts.")] = 0,
    field: FieldOption = "text",
    separator: SeparatorOption = None,
    split: SplitOption = "train",
    config: ConfigOption = None,
    out: Annotated[Path | None, typer.Option(help="Write the whole record, as JSON.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure a model: likelihood bound, accuracy and, with a judge, its texts."""
    with _status("starting"):
        from sfumato.evals.evaluate import EvaluateOptions
        from sfumato.evals.evaluate import evaluate as measure
        from sfumato.evals.record import write

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
    source = _source(data, field=field, separator=separator, split=split, config=config)
    lm = _load(model, device)
    with _status("reading") as tell:
        record = measure(lm, source, options, model_name=model, progress=tell)
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(_summary(record["results"])))
    if out is not None:
        write(record, out)


@app.command()
def doctor() -> None:
    """Say what is installed, which device is used, and what is missing."""
    from sfumato.doctor import examine

    colours = {"ok": "green", "note": "yellow", "missing": "red"}
    whole = True
    for finding in examine():
        state = typer.style(f"{finding.state:8}", fg=colours[finding.state])
        typer.echo(f"{state} {finding.name:15} {finding.detail}")
        whole = whole and finding.state != "missing"
    raise typer.Exit(0 if whole else 1)


# --- what commands share ---


def _console(**options: Any) -> "Console":
    from rich.console import Console

    return Console(**options)


@contextmanager
def _status(begin: str) -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is being done, if somebody can see it."""
    screen = _console(stderr=True)
    if not screen.is_terminal:
        yield lambda doing: None
        return
    with screen.status(begin) as status:
        yield status.update


def _load(name: str, device: str) -> "DiffusionLM":
    with _status("loading the model"):
        from transformers.utils import logging

        from sfumato.pipeline import DiffusionLM

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        return DiffusionLM.from_pretrained(name, device=device)


def _source(name: str, *, separator: str | None, **options: Any) -> "Source":
    """A source; `separator` may spell a line end as \\n."""
    from sfumato.data.sources import Source

    if separator is not None:
        options["separator"] = separator.replace("\\n", "\n")
    return Source(name, **options)


def _pairs(texts: list[str]) -> dict[str, float]:
    """["level=0.8"] -> {"level": 0.8}; whole numbers stay whole."""
    values: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(f"expected name=number, such as level=0.8, got '{text}'") from None
        values[name] = int(number) if number.is_integer() and "." not in value else number
    return values


def _traced(reader: "Reader", pages: Iterator["Page"], path: Path) -> Iterator["Page"]:
    """Write every page as one line of JSON while it passes by."""
    try:
        with path.open("w", encoding="utf-8") as file:
            for page in pages:
                record = {
                    "step": page.step,
                    "texts": [reader.show(page, row) for row in range(len(page.task.rows))],
                    "tokens": page.canvas.tokens.tolist(),
                    "decided": page.decided.tolist(),
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                yield page
    except OSError as error:
        raise DataError(f"cannot write the trajectory to {path}: {error.strerror}") from error


def _summary(results: dict[str, Any]) -> list[str]:
    """What `evaluate` found, in a few lines."""

    def number(estimate: dict[str, float], digits: int) -> str:
        return f"{float(estimate['value']):.{digits}f} +- {float(estimate['error']):.{digits}f}"

    lines = []
    for key in ("likelihood", "exact_likelihood"):
        if key in results:
            found = results[key]
            lines += [
                f"{key.replace('_', ' ')}, {found['estimator']}:",
                f"  {number(found['nats_per_token'], 4)} nats a token",
                f"  {number(found['bits_per_byte'], 4)} bits a byte",
                f"  {number(found['perplexity'], 2)} perplexity",
                f"  {found['accuracy']:.1%} right of the {found['accuracy_of']}",
                f"  {results['rows']:,} rows, {found['tokens']:,} tokens, {found['bytes']:,} bytes",
            ]
    for key in ("generated", "held_out") if "texts" in results else ():
        found = results["texts"][key]
        distinct = ", ".join(f"{float(share):.3f}" for share in found["distinct"].values())
        lines += [
            f"{found['texts']} {key.replace('_', ' ')} texts, judged by {found['judge']['model']}:",
            f"  {number(found['perplexity'], 2)} generative perplexity",
            f"  {float(found['entropy']):.3f} nats of entropy, {distinct} distinct 1-, 2-, 3-grams",
            f"  {float(found['bleu']):.2f} BLEU, {float(found['self_bleu']):.2f} Self-BLEU",
        ]
    return lines


if __name__ == "__main__":
    main()
