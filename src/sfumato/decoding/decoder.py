"""What a way of writing is: a `Decoder`, and the `Writer` that it writes for.

A decoder says which options it takes. All others are refused here, with the reason that it gives.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from sfumato.data.special_tokens import SpecialIds
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.request import Request
from sfumato.decoding.step import Step
from sfumato.errors import ConfigError
from sfumato.models.packed import Network
from sfumato.noise.corruption import Corruption
from sfumato.rng import Rng
from sfumato.types import Canvas, Filter

SOURCE, GAPS = "source", "gaps"  # of a request, not options of it
# what not every decoder takes, and whether options ask for it
OPTIONAL: dict[str, Callable[[GenerationOptions], bool]] = {
    "grow": lambda options: options.grow is not None,
    "approx_cache": lambda options: options.approx_cache is not None,
    "torch_compile": lambda options: options.torch_compile,
    "grammar": lambda options: not options.free,
    "guidance": lambda options: options.guidance > 0,
    "lookahead": lambda options: not options.lookahead,
    SOURCE: lambda options: False,
    GAPS: lambda options: False,
}
ONE_WAY = "this model writes from left to right and ends where the text does; leave grow out"
EXACT = "this model has an exact cache, which is used by itself; leave approx_cache out"


@dataclass(frozen=True)
class Writer:
    """A model, as decoders want it."""

    network: Network
    corruption: Corruption
    special: SpecialIds
    ends: frozenset[int]  # tokens that end a text

    @property
    def block_size(self) -> int | None:
        """Of a network that reads block after block: 1 of next tokens."""
        return self.network.model.block_size

    @property
    def shift(self) -> bool:
        """Whether the network reads the token before each position."""
        return self.network.model.shift

    @property
    def one_by_one(self) -> bool:
        """Whether the model writes one token after another."""
        return self.shift and self.block_size == 1

    def compute(self, request: Request) -> Any:
        """The network as a request wants it computed."""
        options = request.options
        alone = options.torch_compile and len(request.rows) == 1
        return self.network.compute(options.precision, alone)


@dataclass(frozen=True, kw_only=True)
class Decoder(ABC):
    """A way of writing, made for one request; what does not change from page to page."""

    takes: ClassVar[frozenset[str]]  # of `OPTIONAL`; all others are refused
    refuses: ClassVar[Mapping[str, str]] = {}  # ... and why, where there is more to say

    ends: Sequence[int] = ()  # a text is over where it has written one of these
    filler: int = 0  # what follows it

    @classmethod
    @abstractmethod
    def suits(cls, writer: Writer, options: GenerationOptions) -> bool:
        """Whether a model writes this way, with these options."""

    @classmethod
    def settled(cls, writer: Writer, options: GenerationOptions) -> GenerationOptions:
        """The options as this way has them; raises for those that do not go together."""
        return options

    @classmethod
    def check_request(cls, writer: Writer, request: Request) -> None:
        """Raise for a source, a prompt or guidance that does not go with the rest."""
        check_prefix(writer, request)

    @classmethod
    def cuts(cls, options: GenerationOptions) -> bool:
        """Whether what is behind a position has no say in it, and need not be there."""
        return not options.lookahead

    @classmethod
    @abstractmethod
    def of(cls, writer: Writer, request: Request) -> Self:
        """What writes a request."""

    @abstractmethod
    def pages(
        self,
        canvas: Canvas,
        step: Step,
        rng: Rng,
        *,
        num_steps: int | None = None,
        filters: Sequence[Filter] = (),
    ) -> Iterator[Canvas]:
        """Yield the page after every step, until all is written."""

    @classmethod
    def refuse(cls, writer: Writer, asked: str) -> None:
        """Raise if this way cannot have what is `asked`."""
        if asked not in cls.takes:
            reason = cls.refuses.get(asked, f"this model does not write with {asked}; leave it out")
            raise ConfigError(reason.format(size=writer.block_size))


def ending(writer: Writer) -> dict[str, Any]:
    """How texts of a model end: arguments of every decoder."""
    return {"ends": tuple(sorted(writer.ends)), "filler": writer.special.filler}


def check_prefix(writer: Writer, request: Request) -> None:
    """Raise for a source that is text before the rest, if there is no room for it."""
    model = writer.network.model
    if request.source is None or model.reads_source:
        return
    positions, source = model.config.max_position_embeddings, request.source.shape[1]
    canvas = request.canvas.tokens.shape[1]
    prompt = 0 if request.left is None else request.left.shape[1]
    if source + prompt + canvas > positions:
        raise ConfigError(
            f"{source} tokens of the source, {prompt + canvas} of prompt and text do not fit "
            f"into the model's {positions} positions; use a length of at most "
            f"{max(1, positions - source - prompt)}, or a model with an encoder"
        )
