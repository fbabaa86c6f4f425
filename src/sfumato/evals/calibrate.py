"""The fastest way to decode whose loss of quality stays within a tolerance, with confidence.

Quality is the exact likelihood of held-out text under each decoder (DUEL, arXiv 2603.01367): what
it loses against one token a pass is what deciding several at once costs. Learn then Test (arXiv
2110.01052) says which settings are safe; the clock says which of those is the fastest.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from sfumato.arguments import PATH, Amount, Count, Kind, Seed, check_fields
from sfumato.data.sources import Source
from sfumato.errors import ConfigError
from sfumato.estimates import Estimate
from sfumato.evals.evaluate import DATA, MODEL
from sfumato.evals.judge import Judge
from sfumato.evals.pieces import Piece, draw_pieces, score
from sfumato.evals.record import record, write
from sfumato.evals.risk import TESTS, safe, texts_needed
from sfumato.evals.settings import Grid, Setting, Wanted
from sfumato.evals.speed import Pace, autoregressive_lap, lap
from sfumato.evals.text import distinct_n, entropy, words
from sfumato.likelihood.teacher_forcing import can_teacher_force
from sfumato.lm.folders import find_folder
from sfumato.lm.generation_config import DEFAULTS
from sfumato.lm.model import DiffusionLM
from sfumato.storage.files import read_object

BATCH = 4  # texts read together; what is said of all their states is kept
SPAN = 10  # a text counts for no more than so many times the tolerance

Progress = Callable[[str], None]
Tolerance = Annotated[float, Field(gt=0, title="above 0 nats a token")]
Confidence = Annotated[float, Field(ge=0.5, lt=1, description="use 0.9")]


@dataclass(frozen=True)
class CalibrateOptions:
    """What is compared, on how much text, and how sure the answer has to be."""

    tolerance: Tolerance = 0.05  # nats a token; 0.05 is 5 % of perplexity
    confidence: Confidence = 0.9  # that what is called safe is within it
    rows: Amount = 128  # held-out texts
    num_texts: Count = 4  # written with every setting, to time and to judge them
    step: tuple[str, ...] = ()  # these as in `Wanted`
    num_steps: tuple[Count, ...] = ()
    block: tuple[Count, ...] = ()
    reference: str = "probability"
    test: str = "betting"
    judge: str | None = None  # a causal language model by path
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self)
        if self.test not in TESTS:
            raise ConfigError(f"test must be one of {', '.join(TESTS)}, got '{self.test}'")
        self.wanted()  # its own checks

    def wanted(self) -> Wanted:
        return Wanted(self.step, self.num_steps, self.block, self.reference)


OPTIONS = Kind(CalibrateOptions)


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
        excess = _excess(lm, grid, readable, pieces, options, progress)
        paces, twin = _paces(lm, settings, options, progress)
    found = iter(excess)
    rows = [
        _row(setting, next(found) if yes else None, pace, options)
        for setting, yes, pace in zip(settings, can, paces, strict=True)
    ]
    held = _judge(judge, rows, paces, lm, pieces, progress) if judge else None
    _certify(rows[len(ends) :], grid, excess[len(ends) :], options)
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
            **_choice(rows, twin),
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


def _excess(
    lm: DiffusionLM,
    grid: Grid,
    settings: Sequence[Setting],
    pieces: Sequence[Piece],
    options: CalibrateOptions,
    progress: Progress,
) -> Tensor:
    """Nats a token that each setting needs more than the reference, the first: [settings, N]."""
    nats = torch.zeros(len(settings), len(pieces), dtype=torch.float64)
    order = sorted(range(len(pieces)), key=lambda n: (pieces[n].start, pieces[n].stop))
    groups: list[list[int]] = []
    for place in order:
        alike = groups and pieces[groups[-1][0]].start == pieces[place].start
        if alike and len(groups[-1]) < BATCH:
            groups[-1].append(place)
        else:
            groups.append([place])
    clock = Remaining("reading", sum(map(len, groups)) * len(settings), progress)
    for group in groups:
        taken = [pieces[place] for place in group]
        for number, found in enumerate(score(lm, grid, settings, taken, group, options.seed)):
            nats[number, group] = found.cpu()
            clock.advance(len(group))
    counts = torch.tensor([piece.count for piece in pieces], dtype=torch.float64)
    return (nats - nats[0]) / counts


def _paces(
    lm: DiffusionLM, settings: Sequence[Setting], options: CalibrateOptions, progress: Progress
) -> tuple[list[Pace], Pace]:
    """How fast each setting writes, in turns so that they share what else the machine does; and
    the same network, were it autoregressive."""
    laps: list[list[Any]] = [[] for _ in settings]
    own = []
    clock = Remaining("writing", options.num_texts * (1 + len(settings)), progress)
    lap(lm, **settings[0].changes(), seed=options.seed)  # what the first text alone has to wait for
    for seed in range(options.seed, options.seed + options.num_texts):
        for number, setting in enumerate(settings):
            laps[number].append(lap(lm, **setting.changes(), seed=seed))
            clock.advance()
        written = sum(one.tokens for one in laps[0]) // len(laps[0])
        own.append(autoregressive_lap(lm, max(1, written), seed))
        clock.advance()
    return [Pace(tuple(each)) for each in laps], Pace(tuple(own))


def _row(
    setting: Setting, excess: Tensor | None, pace: Pace, options: CalibrateOptions
) -> dict[str, Any]:
    """What was measured of one setting."""
    row = {"name": setting.name, "setting": setting.changes(), "safe": False, **pace.as_dict()}
    if excess is not None:
        error = float(excess.std() / math.sqrt(len(excess))) if len(excess) > 1 else math.nan
        losses = _losses(excess, options.tolerance)
        row["excess"] = asdict(Estimate.of(float(excess.mean()), error, len(excess) - 1))
        row["risk"] = float(losses.mean()) * SPAN * options.tolerance  # nats a token
        row["clipped"] = float((losses == 1).double().mean())
    return row


def _losses(excess: Tensor, tolerance: float) -> Tensor:
    """In [0, 1]; 1 / SPAN is the tolerance. A text that gains counts as one that loses nothing."""
    return (excess / (SPAN * tolerance)).clamp(0, 1)


def _certify(
    rows: Sequence[dict[str, Any]], grid: Grid, excess: Tensor, options: CalibrateOptions
) -> None:
    """Mark what is safe among the rows of all families."""
    losses = iter(_losses(excess, options.tolerance))
    scored = [family for family in grid.families if family.scored]
    each = [[next(losses) for _ in family.settings] for family in scored]
    verdicts = iter(safe(each, 1 / SPAN, 1 - options.confidence, options.test))
    place = 0
    for number, family in enumerate(grid.families):
        count, p_values = next(verdicts) if family.scored else (0, [])
        for step in range(len(family.settings)):
            row = rows[place + step]
            row["family"], row["safe"] = number, step < count
            if p_values:
                row["p_value"] = p_values[step]
        place += len(family.settings)


def _choice(rows: Sequence[dict[str, Any]], twin: Pace) -> dict[str, Any]:
    """The fastest safe setting, if it beats one token a pass, and what autoregression would do."""
    certified = [number for number, row in enumerate(rows) if row["safe"]]
    best = max(certified, key=lambda n: rows[n]["tokens_per_second"], default=None)
    reference = rows[0]["tokens_per_second"]
    if best is None:
        reason = (
            "nothing is certified: already the safest settings lose more than the tolerance, or "
            "there are too few texts to tell"
        )
    elif rows[best]["tokens_per_second"] <= reference:
        reason = "no certified setting is faster than one token a pass"
        best = None
    else:
        times = rows[best]["tokens_per_second"] / reference
        reason = f"{rows[best]['name']}: {times:.2f} times as fast as one token a pass"
    used = rows[0] if best is None else rows[best]
    times = used["tokens_per_second"] / twin.tokens_per_second
    even = used["seconds_per_forward"] / twin.seconds_per_forward
    told = (
        f"the same network, read causally with an exact cache, writes "
        f"{twin.tokens_per_second:.0f} tokens a second: "
        f"{'slower' if times > 1 else 'faster'} than {used['name']}, which writes "
        f"{used['tokens_per_second']:.0f}. A pass of the latter takes {even:.2f} times as long and "
        f"decides {used['tokens_per_forward']:.2f} tokens; from {even:.2f} on it pays"
    )
    return {
        "chosen": best,
        "reason": reason,
        "autoregression_is_faster": times <= 1,
        "autoregression_says": told,
    }


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


class Remaining:
    """Says how much is done, and how long the rest will take at this pace."""

    def __init__(self, doing: str, total: int, progress: Progress):
        self.doing, self.total, self.progress = doing, total, progress
        self.done, self.begin = 0, time.perf_counter()

    def advance(self, by: int = 1) -> None:
        self.done += by
        left = (time.perf_counter() - self.begin) / self.done * (self.total - self.done)
        minutes, seconds = divmod(round(left), 60)
        share = f"{self.done / self.total:.0%} of {self.total:,} texts x settings"
        self.progress(f"{self.doing}: {share}, about {minutes}:{seconds:02} left")
