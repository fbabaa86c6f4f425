"""The whole canvas, for networks that see it all; in blocks, if a user wants them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sfumato.data.special_tokens import SpecialIds
from sfumato.decoding.decoder import GAPS, SOURCE, Decoder, Writer, ending
from sfumato.decoding.loops import generate
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.request import Request
from sfumato.decoding.step import Step
from sfumato.denoisers.approximate import ApproximateCache
from sfumato.denoisers.full import Full
from sfumato.denoisers.guided import Guided, sides, towards_prompt
from sfumato.errors import ConfigError
from sfumato.rng import Rng
from sfumato.types import Canvas, Denoiser, Filter

NO_COMPILE = (
    "torch_compile is for models of blocks and autoregressive ones, whose passes are alike; this "
    "one has full attention: leave it out"
)


@dataclass(frozen=True)
class WholeCanvas(Decoder):
    """For models of full attention: all at once, or block after block with what is around it."""

    refuses = {  # noqa: RUF012 (a class variable of the base)
        "torch_compile": NO_COMPILE,
    }
    takes = frozenset({"approx_cache", "grammar", "guidance", "lookahead", SOURCE, GAPS})

    denoiser: Denoiser
    block: int | None = None
    lookahead: bool = True

    @classmethod
    def suits(cls, writer: Writer, options: GenerationOptions) -> bool:
        return True

    @classmethod
    def settled(cls, writer: Writer, options: GenerationOptions) -> GenerationOptions:
        if options.approx_cache is None:
            return options
        if options.block is None:
            raise ConfigError("approx_cache keeps what is around a block; set block, such as 32")
        if options.rule(writer.corruption).verifies:
            raise ConfigError(
                f"step '{options.step}' looks at every position anew, so nothing can be kept; "
                "leave approx_cache out"
            )
        return options

    @classmethod
    def check_request(cls, writer: Writer, request: Request) -> None:
        super().check_request(writer, request)
        options = request.options
        if options.approx_cache and (request.source is not None or options.guidance):
            raise ConfigError("approx_cache keeps nothing of a source or of guidance; leave it out")

    @classmethod
    def of(cls, writer: Writer, request: Request) -> "WholeCanvas":
        options = request.options
        denoiser = Full.of(writer.compute(request), writer.special.mask)
        if options.approx_cache:
            shown: Denoiser = ApproximateCache(
                denoiser, options.approx_cache, refresh=options.approx_refresh
            ).given(request.left, left_hidden=request.hidden)
        else:
            shown = reading(request, denoiser, writer.special)
        around = {"block": options.block, "lookahead": options.lookahead}
        return cls(denoiser=shown, **around, **ending(writer))

    def pages(
        self,
        canvas: Canvas,
        step: Step,
        rng: Rng,
        *,
        num_steps: int | None = None,
        filters: Sequence[Filter] = (),
    ) -> Iterator[Canvas]:
        around = {"block": self.block, "lookahead": self.lookahead}
        around |= {"ends": self.ends, "filler": self.filler}
        own = {"num_steps": num_steps, "filters": filters}
        return generate(self.denoiser, canvas, step, rng, **own, **around)


@torch.no_grad()
def reading(request: Request, denoiser: Full, special: SpecialIds) -> Full | Guided:
    """The denoiser that has read a request's source, once, and the text before its canvas."""
    scale, left = request.options.guidance, request.left
    if scale and request.source is None:
        own = torch.tensor(special.all, device=request.canvas.tokens.device)
        hidden = request.canvas.fixed & ~torch.isin(request.canvas.tokens, own)
        left_prompt = None
        if left is not None and request.hidden is not None:
            left_prompt = ~torch.isin(left, own) & ~request.hidden
        return towards_prompt(denoiser, scale, hidden, left, request.hidden, left_prompt)
    shown: Full | Guided = denoiser
    if request.source is not None:
        seen, unseen = sides(denoiser, request.source)
        shown = Guided(seen, unseen, scale) if scale else seen
    return shown if left is None else shown.given(left=left, left_hidden=request.hidden)
