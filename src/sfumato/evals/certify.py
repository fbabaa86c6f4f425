"""What a setting costs against one token a pass, certified; and which setting is chosen."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sfumato.estimates import Estimate
from sfumato.evals.calibrate_options import CalibrateOptions
from sfumato.evals.pieces import Piece, score
from sfumato.evals.progress import Progress, Remaining
from sfumato.evals.risk import safe
from sfumato.evals.settings import Grid, Setting
from sfumato.evals.speed import Pace, autoregressive_lap, lap
from sfumato.lm.model import DiffusionLM

BATCH = 4  # texts read together; what is said of all their states is kept


SPAN = 10  # a text counts for no more than so many times the tolerance


def excess_of(
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


def paces_of(
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


def row_of(
    setting: Setting, excess: Tensor | None, pace: Pace, options: CalibrateOptions
) -> dict[str, Any]:
    """What was measured of one setting."""
    row = {"name": setting.name, "setting": setting.changes(), "safe": False, **pace.as_dict()}
    if excess is not None:
        error = float(excess.std() / math.sqrt(len(excess))) if len(excess) > 1 else math.nan
        losses = losses_of(excess, options.tolerance)
        row["excess"] = asdict(Estimate.of(float(excess.mean()), error, len(excess) - 1))
        row["risk"] = float(losses.mean()) * SPAN * options.tolerance  # nats a token
        row["clipped"] = float((losses == 1).double().mean())
    return row


def losses_of(excess: Tensor, tolerance: float) -> Tensor:
    """In [0, 1]; 1 / SPAN is the tolerance. A text that gains counts as one that loses nothing."""
    return (excess / (SPAN * tolerance)).clamp(0, 1)


def certify(
    rows: Sequence[dict[str, Any]], grid: Grid, excess: Tensor, options: CalibrateOptions
) -> None:
    """Mark what is safe among the rows of all families."""
    losses = iter(losses_of(excess, options.tolerance))
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


def choice(rows: Sequence[dict[str, Any]], twin: Pace) -> dict[str, Any]:
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
