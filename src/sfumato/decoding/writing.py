"""Who writes a request: the table of decoders, and the one place where they are asked.

A new way of writing is a `Decoder` in a file of its own, and a line in `DECODERS`.
"""

from collections.abc import Callable, Iterator, Sequence

from sfumato.decoding.blocks import Blocks, OneByOne
from sfumato.decoding.canvas import WholeCanvas
from sfumato.decoding.decoder import GAPS, OPTIONAL, SOURCE, Decoder, Writer
from sfumato.decoding.few_texts import Finite, draw_texts
from sfumato.decoding.growing import Growing
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.particles import check_particles, written
from sfumato.decoding.request import Request
from sfumato.errors import ConfigError
from sfumato.types import Canvas

# the first one that suits a model and its options writes
DECODERS: tuple[type[Decoder], ...] = (OneByOne, Blocks, Growing, WholeCanvas)


def decoder_for(writer: Writer, options: GenerationOptions) -> type[Decoder]:
    """Who writes with these options."""
    return next(decoder for decoder in DECODERS if decoder.suits(writer, options))


def settle(writer: Writer, options: GenerationOptions) -> GenerationOptions:
    """The options as they will be used; raises for any that have no use."""
    decoder = decoder_for(writer, options)
    options = decoder.settled(writer, options)
    writer.network.check(options.precision, options.torch_compile)
    for asked, wanted in OPTIONAL.items():
        if wanted(options):
            decoder.refuse(writer, asked)
    return options


def check_gaps(writer: Writer, options: GenerationOptions) -> None:
    """Raise for a model that cannot see what follows a gap."""
    decoder_for(writer, options).refuse(writer, GAPS)


def check_request(writer: Writer, request: Request) -> None:
    """Raise for a request that its decoder cannot write."""
    decoder, options = decoder_for(writer, request.options), request.options
    if request.source is not None:
        decoder.refuse(writer, SOURCE)
    decoder.check_request(writer, request)
    if options.guidance and request.source is None:
        given = (isinstance(part, str) and part.strip() for row in request.rows for part in row)
        if not any(given):
            raise ConfigError("guidance needs a prompt or a source to be guided by; leave it out")
    check_particles(request)


def canvases(writer: Writer, request: Request) -> Iterator[Canvas]:
    """The pages of a request, by its step rule alone."""
    return (
        decoder_for(writer, request.options)
        .of(writer, request)
        .pages(
            request.canvas,
            request.step,
            request.rng,
            num_steps=request.options.num_steps,
            filters=request.filters,
        )
    )


def write(
    writer: Writer, request: Request, encode: Callable[[Sequence[str]], list[list[int]]]
) -> Iterator[Canvas]:
    """The pages of a request. Where a grammar has so few texts that each can be scored, they are
    drawn; else canvases are weighed, if particles are asked for."""

    def run(request: Request) -> Iterator[Canvas]:
        return canvases(writer, request)

    finite = Finite.of(request, writer.corruption, encode, writer.special)
    if finite is not None:
        cut = decoder_for(writer, request.options).cuts(request.options)
        request = draw_texts(request, finite, run, cut=cut)
    width = request.canvas.tokens.shape[1]
    return written(request, run, (request.options.block or width) < width)
