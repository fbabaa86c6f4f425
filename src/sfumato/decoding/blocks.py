"""Block after block with an exact cache: models of blocks, and of one token after another.

Rows of a batch go at their own pace: `own_pace`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from sfumato.decoding.decoder import (
    EXACT,
    GAPS,
    ONE_WAY,
    SOURCE,
    Decoder,
    Writer,
    ending,
)
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.own_pace import Clerk, narrowed, widened
from sfumato.decoding.request import Request
from sfumato.decoding.rules import rule_name
from sfumato.decoding.step import Step
from sfumato.denoisers.blocks import BlockReader, CachedReader
from sfumato.denoisers.guided import GuidedReader, sides
from sfumato.errors import ConfigError
from sfumato.rng import Rng
from sfumato.types import Canvas, Filter

UNGUIDED = "a model of blocks reads no source, and cannot be guided; leave out source and guidance"


@dataclass(frozen=True)
class Blocks(Decoder):
    """For models of blocks: every block after clean text, with an exact cache.

    `num_steps` is shared out over the blocks that a row writes (None: one step for every noisy
    position). Where one of `ends` is written, and nothing before it is noisy, the row is done: the
    rest counts as given, filled with `filler`, and no more is computed for it.
    """

    refuses = {  # noqa: RUF012 (a class variable of the base)
        "grow": ONE_WAY,
        "approx_cache": EXACT,
        SOURCE: UNGUIDED,
        "guidance": UNGUIDED,
        GAPS: "this model writes blocks of {size} tokens and cannot see what follows one; "
        "infilling needs a model of full attention, such as stories-infill",
    }
    takes = frozenset({"torch_compile", "grammar", "lookahead"})

    reader: BlockReader

    @classmethod
    def suits(cls, writer: Writer, options: GenerationOptions) -> bool:
        return writer.block_size is not None and not writer.one_by_one

    @classmethod
    def settled(cls, writer: Writer, options: GenerationOptions) -> GenerationOptions:
        if writer.shift and options.rule(writer.corruption).verifies:
            raise ConfigError(
                f"step '{rule_name(options.step)}' leaves single positions out of a pass, and this "
                "model reads the token before each of them; use another step"
            )
        if options.block not in (None, writer.block_size):
            raise ConfigError(
                f"this model was trained on blocks of {writer.block_size} tokens, got "
                f"block={options.block}: leave it out"
            )
        return replace(options, block=writer.block_size, lookahead=False)

    @classmethod
    def cuts(cls, options: GenerationOptions) -> bool:
        return False  # a block is seen whole

    @classmethod
    def of(cls, writer: Writer, request: Request) -> "Blocks":
        reader = CachedReader.of(writer.compute(request), writer.special.mask)
        return cls(reader=reader, **ending(writer))

    @torch.no_grad()
    def pages(
        self,
        canvas: Canvas,  # [B, W]; a text begins in the first column
        step: Step,
        rng: Rng,
        *,
        num_steps: int | None = None,
        filters: Sequence[Filter] = (),
    ) -> Iterator[Canvas]:
        """Yield the page after every pass."""
        reader, size, width = self.reader, self.reader.size, canvas.tokens.shape[1]
        page = widened(canvas, -width % size, self.filler)
        own = (step, rng, num_steps, tuple(filters), tuple(self.ends), self.filler)
        clerk = Clerk(*own, size, reader.settles)
        rows = clerk.begin(page)
        if not rows:
            yield canvas
            return
        alive = torch.tensor([row.number for row in rows], device=page.tokens.device)
        read = torch.tensor([row.first * size for row in rows], device=page.tokens.device)
        if len(rows) < len(page.tokens):
            reader = reader.select(alive)
        reader, memory = reader.begin(page.tokens[alive], read), {}
        while rows:
            page, memory, reader, rows = clerk.tick(page, memory, reader, rows)
            yield narrowed(page, width)
            alive = [index for index, row in enumerate(rows) if row.block <= row.last]
            if len(alive) < len(rows):
                kept = torch.tensor(alive, dtype=torch.int64, device=page.tokens.device)
                rows, reader = [rows[index] for index in alive], reader.select(kept)
                memory = {key: values[kept] for key, values in memory.items()}


@dataclass(frozen=True)
class OneByOne(Blocks):
    """For autoregressive models: blocks of one token, of a network that reads the token before."""

    refuses = {  # noqa: RUF012
        "grow": ONE_WAY,
        "approx_cache": EXACT,
        GAPS: "this model writes from left to right and cannot see what follows a gap; "
        "infilling needs a diffusion model",
    }
    takes = frozenset({"torch_compile", "grammar", "lookahead", "guidance", SOURCE})

    @classmethod
    def suits(cls, writer: Writer, options: GenerationOptions) -> bool:
        return writer.one_by_one

    @classmethod
    def settled(cls, writer: Writer, options: GenerationOptions) -> GenerationOptions:
        own = {"step": "left_to_right", "num_steps": None, "block": 1}
        for name, only in own.items():
            if getattr(options, name) not in (None, only):
                raise ConfigError(
                    f"this model writes one token after another, from left to right; got "
                    f"{name}={getattr(options, name)}: leave it out"
                )
        return replace(options, step="left_to_right", block=1, lookahead=False)

    @classmethod
    def check_request(cls, writer: Writer, request: Request) -> None:
        super().check_request(writer, request)
        if request.options.guidance and request.source is None:
            raise ConfigError(
                "this model writes from left to right and has never seen a hidden prompt, so that "
                "it can be guided by a source only; leave out guidance"
            )

    @classmethod
    def cuts(cls, options: GenerationOptions) -> bool:
        return True

    @classmethod
    @torch.no_grad()
    def of(cls, writer: Writer, request: Request) -> "OneByOne":
        shown = unshown = CachedReader.of(writer.compute(request), writer.special.mask)
        if request.source is not None:
            shown, unshown = sides(shown, request.source)
        if request.left is not None:
            shown = shown.given(request.left, request.hidden)
            unshown = unshown.given(request.left, request.hidden)
        scale = request.options.guidance
        reader = GuidedReader(shown, unshown, scale) if scale else shown
        return cls(reader=reader, **ending(writer))
