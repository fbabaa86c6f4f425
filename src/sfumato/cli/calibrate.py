"""`sfumato calibrate`: the fastest decoding that loses no more than one allows."""

import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.inputs import load_model, open_source
from sfumato.cli.options import MODEL, DeviceOption, JsonOption, Reading, grouped
from sfumato.cli.terminal import open_console, show_status


@dataclass(frozen=True)
class Calibrating:
    """What is compared: `CalibrateOptions`, by their names."""

    tolerance: Annotated[
        float, typer.Option(help="Nats a token that may be lost; 0.05 is 5 % of perplexity.")
    ] = 0.05
    confidence: Annotated[float, typer.Option(help="That no more is lost.")] = 0.9
    rows: Annotated[int, typer.Option(help="Held-out texts to measure the loss on.")] = 128
    num_texts: Annotated[
        int, typer.Option(help="Texts to write with every setting, for the clock and the judge.")
    ] = 4
    step: Annotated[
        list[str] | None,
        typer.Option(
            help="Rule, or a rule with values from safe to bold: threshold=0.9,0.7; or own, the "
            "model's, in so many --num-steps. Repeatable.",
            show_default="threshold, factor, entropy_bound, probability",
        ),
    ] = None
    num_steps: Annotated[
        list[int] | None,
        typer.Option(
            "--num-steps", help="Of rules without values, from most to least; repeatable."
        ),
    ] = None
    block: Annotated[
        list[int] | None,
        typer.Option(help="Block sizes, repeatable.", show_default="the model's, or 8, 16, 32"),
    ] = None
    reference: Annotated[
        str, typer.Option(help="One token a pass by probability, margin, entropy or left_to_right.")
    ] = "probability"
    test: Annotated[str, typer.Option(help="betting or hoeffding_bentkus.")] = "betting"
    judge: Annotated[
        str | None, typer.Option(help="Causal model that judges written texts, by path.")
    ] = None
    seed: Annotated[int, typer.Option(help="Of the texts drawn, and of those written.")] = 0

    def options(self) -> dict[str, Any]:
        """As `CalibrateOptions` have them."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return given | {key: tuple(given[key] or ()) for key in ("step", "num_steps", "block")}


@grouped
def calibrate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: Annotated[str, typer.Argument(help="Prepared folder, or texts as for data prepare.")],
    calibrating: Calibrating,
    reading: Reading,
    out: Annotated[
        Path | None, typer.Option(help="Leave the model as it is, and make a copy here.")
    ] = None,
    plot: Annotated[bool, typer.Option(help="Draw the frontier, calibration.png.")] = True,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Find the fastest decoding whose loss of quality is within a tolerance; make it the model's.

    Writes calibration.json and calibration.png beside the model's generation_config.json.
    """
    from sfumato.cli.calibration_view import PICTURE, copy_files, show, target
    from sfumato.lm.calibrated import RECORD

    folder = target(model, out)
    with show_status("starting"):
        from sfumato.evals.calibrate import calibrate as measure
        from sfumato.evals.calibrate import write_chosen
        from sfumato.evals.calibrate_options import CalibrateOptions
        from sfumato.evals.frontier import draw, figure_class
        from sfumato.evals.record import write
        from sfumato.storage.publish import published

    options = CalibrateOptions(**calibrating.options())
    if plot:
        figure_class()
    lm = load_model(model, device)
    left = "nothing was changed. Fewer --rows or --step take less"
    with show_status("starting", left) as tell:
        made = measure(lm, open_source(data, reading), options, model_name=model, progress=tell)
    chosen = made["results"]["chosen"] is not None
    with published(folder) as new:
        if chosen:
            copy_files(model, new, "*" if out is not None else "generation_config.json")
            write_chosen(made, new)
        write(made, new / RECORD)
        if plot:
            draw(made, new / PICTURE)
    if as_json:
        typer.echo(json.dumps(made, indent=2, ensure_ascii=False))
        return
    show(made, open_console(width=None if sys.stdout.isatty() else 120))  # whole lines in a file
    done = f"{folder} decodes so from now on" if chosen else f"{folder}: nothing is changed"
    typer.echo(f"{done}; the record is in {folder / RECORD}")
