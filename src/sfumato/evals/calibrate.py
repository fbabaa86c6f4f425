"""The fastest way to decode whose loss of quality stays within a tolerance, with confidence.

Quality is the exact likelihood of held-out text under each decoder (DUEL, arXiv 2603.01367): what
it loses against one token a pass is what deciding several at once costs. Learn then Test (arXiv
2110.01052) says which settings are safe; the clock says which of those is the fastest.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sfumato.arguments import PATH
from sfumato.data.sources import Source
from sfumato.errors import ConfigError
from sfumato.evals.calibrate_options import OPTIONS, CalibrateOptions
from sfumato.evals.certify import SPAN, certify, choice, excess_of, paces_of, row_of
from sfumato.evals.evaluate import DATA, MODEL
from sfumato.evals.judge import Judge
from sfumato.evals.pieces import Piece, draw_pieces
from sfumato.evals.progress import Progress, Remaining
from sfumato.evals.record import record, write
from sfumato.evals.risk import texts_needed
from sfumato.evals.settings import Grid, Setting
from sfumato.evals.speed import Pace
from sfumato.evals.text import distinct_n, entropy, words
from sfumato.likelihood.teacher_forcing import can_teacher_force
from sfumato.lm.folders import find_folder
from sfumato.lm.generation_config import DEFAULTS
from sfumato.lm.model import DiffusionLM
from sfumato.storage.structured import read_object


def calibrate(
    lm: DiffusionLM,
    data: str | Path | Source,
    options: CalibrateOptions,
    *,
    model_name: str | Path,
    progress: Progress = lambda doing: None,
) -> dict[str, Any]:
    """The record of a calibration; `results["chosen"]` is the setting to use, or None.

    Nothing is changed: `write_chosen` puts the setting into a model's generation_config.json.
    `model_name`: where `lm` was loaded from. `progress` is told what is being done.
    """
    lm, data = MODEL.check("lm", lm), DATA.check("data", data)
    options, model_name = OPTIONS.check("options", options), PATH.check("model_name", model_name)
    models: dict[str, str | Path] = {"model": find_folder(model_name)}
    grid = Grid.of(lm, options.wanted())
    _check_judged(grid, options)
    scored = [family for family in grid.families if family.scored]
    delta = (1 - options.confidence) / max(1, len(scored))
    pieces, name = draw_pieces(lm, grid, data, options.rows, options.seed)
    need = texts_needed(1 / SPAN, delta, options.test)
    if scored and len(pieces) < need:
        raise ConfigError(
            f"{len(pieces)} texts certify nothing at a confidence of {options.confidence:g} over "
            f"{len(scored)} families of settings, however well they do; give at least {need}, name "
            "fewer rules and blocks, or ask for less confidence"
        )
    judge = None
    if options.judge is not None:
        progress("loading the judge")
        models["judge"] = options.judge
        judge = Judge.load(options.judge, device=lm.device)
    own = _own(lm, grid)
    ends = [grid.reference, *([grid.in_order] if grid.in_order != grid.reference else []), *own]
    settings = [*ends, *(setting for family in grid.families for setting in family.settings)]
    can = [True] * len(ends) + [f.scored for f in grid.families for _ in f.settings]
    readable = [setting for setting, yes in zip(settings, can, strict=True) if yes]
    with lm.inference(), _silent(lm):
        excess = excess_of(lm, grid, readable, pieces, options, progress)
        paces, twin = paces_of(lm, settings, options, progress)
    found = iter(excess)
    rows = [
        row_of(setting, next(found) if yes else None, pace, options)
        for setting, yes, pace in zip(settings, can, paces, strict=True)
    ]
    held = _judge(judge, rows, paces, lm, pieces, progress) if judge else None
    certify(rows[len(ends) :], grid, excess[len(ends) :], options)
    made = record(
        sys.argv,
        {"data": name, "options": asdict(options), "generation": asdict(lm.options)},
        {
            "texts": len(pieces),
            "positions": sum(piece.count for piece in pieces),
            "limit": 1 / SPAN,
            "families": len(grid.families),
            "delta_each": delta,
            "reference": 0,  # places among the settings
            "in_order": ends.index(grid.in_order),
            **({"own": len(ends) - 1} if own else {}),
            "settings": rows,
            "autoregression": twin.as_dict(),
            **({"held_out": held} if held else {}),
            **choice(rows, twin),
        },
        seed=options.seed,
        device=lm.device,
        models=models,
    )
    made["models"]["model"]["path"] = str(model_name)
    return made


def write_chosen(made: dict[str, Any], folder: str | Path) -> None:
    """Put a record's chosen setting into a model's generation_config.json; other keys stay."""
    chosen = made["results"]["chosen"]
    assert chosen is not None, "nothing was chosen"
    setting = made["results"]["settings"][chosen]["setting"]
    path = Path(folder) / "generation_config.json"
    values = read_object(path, DEFAULTS) if path.exists() else {}
    kept = {key: value for key, value in values.items() if key not in setting}
    block = values.get("block")  # of a model of blocks, what it always was
    told = {key: value for key, value in setting.items() if value not in (None, {})}
    write({**({"block": block} if block else {}), **kept, **told}, path)


@contextmanager
def _silent(lm: DiffusionLM) -> Iterator[None]:
    """What an older calibration expects of the settings is not said: they are measured."""
    kept, lm.calibration = lm.calibration, None
    try:
        yield
    finally:
        lm.calibration = kept


def _own(lm: DiffusionLM, grid: Grid) -> list[Setting]:
    """How the model decodes now, if texts have a likelihood under it, and nothing else is it."""
    now = lm.options
    step, block = now.step or "ancestral", None if lm.block_size else now.block
    if not isinstance(step, str):
        return []  # a rule of a user's own, which no record can name
    one_each = now.num_steps is None or now.num_steps == grid.canvas
    own = Setting(step, dict(now.step_options), None if one_each else now.num_steps, block)
    sizes = {family.settings[0].block for family in grid.families}
    others = (grid.reference, grid.in_order)
    if own in others or block not in sizes or not can_teacher_force(now.rule(lm.corruption)):
        return []
    blocks = grid.canvas // (block or lm.block_size or 1)
    return [] if own.num_steps and own.num_steps % blocks else [own]


def _check_judged(grid: Grid, options: CalibrateOptions) -> None:
    for family in grid.families:
        if not family.scored and options.judge is None:
            raise ConfigError(
                f"step '{family.settings[0].step}' chooses or revises positions by what was drawn, "
                "so texts have no likelihood under it; give a judge, or leave it out"
            )


def _judge(
    judge: Judge,
    rows: Sequence[dict[str, Any]],
    paces: Sequence[Pace],
    lm: DiffusionLM,
    pieces: Sequence[Piece],
    progress: Progress,
) -> dict[str, Any] | None:
    """Put what the judge says of the written texts into the rows; of as many held-out ones."""
    clock = Remaining("judging", len(rows) + 1, progress)
    for row, pace in zip(rows, paces, strict=True):
        row["judge"] = _verdict(judge, [one.text for one in pace.laps])
        clock.advance()
    real = [lm.reader.decode(list(piece.tokens)) for piece in pieces[: len(paces[0].laps)]]
    return _verdict(judge, real)


def _verdict(judge: Judge, texts: Sequence[str]) -> dict[str, Any] | None:
    """Perplexity means little without entropy: who repeats himself is easily predicted."""
    written = [text for text in texts if text.strip()]
    if not written:
        return None
    spelled = [words(text) for text in written]
    return {
        "perplexity": asdict(judge(written).perplexity),
        "entropy": entropy(judge.tokenize(written)),
        "distinct_2": distinct_n(spelled, 2),
        "texts": len(written),
    }
