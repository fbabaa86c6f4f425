"""`sfumato evaluate`: how good a model is, in numbers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.inputs import load_model, open_source
from sfumato.cli.options import MODEL, DeviceOption, JsonOption, Reading, grouped
from sfumato.cli.terminal import show_status


@dataclass(frozen=True)
class Measuring:
    """What is measured: `EvaluateOptions`, by their names."""

    rows: Annotated[int, typer.Option(help="Held-out texts or rows, at most.")] = 256
    num_samples: Annotated[int, typer.Option(help="Random maskings of each row.")] = 8
    exact: Annotated[
        bool, typer.Option(help="Also the exact likelihood under the step rule (slow).")
    ] = False
    step: Annotated[
        str | None, typer.Option(help="Step rule of --exact (none: margin) and of the texts.")
    ] = None
    num_steps: Annotated[int | None, typer.Option("--num-steps", "--steps", help="Its steps.")] = (
        None
    )
    temperature: Annotated[float | None, typer.Option(help="Its temperature.")] = None
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="Of pairs, also given another row's source.")
    ] = False
    judge: Annotated[
        str | None, typer.Option(help="Causal model that judges generated texts, by path.")
    ] = None
    num_texts: Annotated[int, typer.Option(help="Texts to generate for the judge.")] = 64
    seed: Annotated[int, typer.Option(help="Of maskings and texts.")] = 0


@grouped
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: Annotated[str, typer.Argument(help="Prepared folder, or texts as for data prepare.")],
    measuring: Measuring,
    reading: Reading,
    out: Annotated[Path | None, typer.Option(help="Write the whole record, as JSON.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure a model: likelihood bound, accuracy and, with a judge, its texts."""
    with show_status("starting"):
        from sfumato.evals.evaluate import EvaluateOptions
        from sfumato.evals.evaluate import evaluate as measure
        from sfumato.evals.record import write

    options = EvaluateOptions(**asdict(measuring))
    source = open_source(data, reading)
    lm = load_model(model, device)
    with show_status("reading") as tell:
        record = measure(lm, source, options, model_name=model, progress=tell)
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(_summary(record["results"])))
    if out is not None:
        write(record, out)


def _summary(results: dict[str, Any]) -> list[str]:
    """What `evaluate` found, in a few lines."""
    from sfumato.estimates import in_words  # loads torch

    def number(estimate: dict[str, float], digits: int) -> str:
        return in_words(float(estimate["value"]), float(estimate["error"]), digits)

    lines = []
    for key in ("likelihood", "exact_likelihood", "shuffled_likelihood"):
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
    if "nats_from_source" in results:
        told = number(results["nats_from_source"], 4)
        lines.append(f"  {told} nats a token more than with the right source, on the same draws")
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
