"""Where what a run learns changes, and with it what its loss means."""

from sfumato.train.config import Run


def stages(run: Run) -> list[tuple[int, str]]:
    """After how many steps another loss is minimised, and which; none in a run of one kind."""
    options, start, kinds = run.objective, 0, []
    for stage in options.curriculum:
        kinds.append((start, f"blocks of {stage.size}"))
        start += stage.steps
    last = f"blocks of {run.model.block_size}" if options.name == "block" else options.name
    kinds.append((start, last))
    first = options.next_token_steps
    ends = [start for start, _ in kinds[1:]] + [run.train.max_steps]
    changes = [
        (max(start, first), kind)
        for (start, kind), end in zip(kinds, ends, strict=True)
        if end > first
    ]
    return [change for change in changes if 0 < change[0] < run.train.max_steps]
