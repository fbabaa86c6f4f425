"""`DiffusionLM`: a model, its tokenizer and its corruption, under one name.

lm = DiffusionLM.from_pretrained("folder or hub name")
print(lm.generate("Once upon a time").text)
"""

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import torch
from pydantic import Field
from torch import Tensor

from sfumato.arguments import FLAG, Kind
from sfumato.data.tokenizer import special_ids, write_tokenizer
from sfumato.decoding.blocks import generate_blocks
from sfumato.decoding.canvas import blank, generate
from sfumato.decoding.changes import Changes
from sfumato.decoding.constrained import constrain
from sfumato.decoding.few_texts import Finite, draw_texts
from sfumato.decoding.filters import Allowed
from sfumato.decoding.growing import generate_growing
from sfumato.decoding.options import GenerationOptions, write_generation_config
from sfumato.decoding.particles import check_particles, written
from sfumato.decoding.request import Request, RowPart, check_size
from sfumato.denoisers.approximate import ApproximateCache
from sfumato.denoisers.blocks import CachedReader
from sfumato.denoisers.full import Cached, Full, autoregressive
from sfumato.devices import find_device, weights_dtype
from sfumato.errors import ConfigError
from sfumato.grammar.grammar import Automaton
from sfumato.lm.calibrated import Calibration
from sfumato.lm.candidates import candidates as find_candidates
from sfumato.lm.candidates import fill_log_probs
from sfumato.lm.conditions import (
    Texts,
    check_conditions,
    check_gaps_fit,
    check_room,
    check_sees_gaps,
    reading,
    repeated,
    source_rows,
)
from sfumato.lm.describe import describe
from sfumato.lm.folders import check_tokenizer, load_folder, write_model
from sfumato.lm.gaps import GapLength, gap_lengths
from sfumato.lm.pages import NOISE, Generation, Page, PageReader, left_padded, spans, template
from sfumato.lm.prompts import Given
from sfumato.lm.stops import Watch
from sfumato.models.attention import BlockCausal
from sfumato.models.encoder_decoder import EncoderDecoder
from sfumato.models.packed import Network
from sfumato.noise.corruption import corruption_from
from sfumato.rng import Rng
from sfumato.storage.hub import Place, bars, push
from sfumato.storage.publish import published
from sfumato.types import Batch, Canvas, Denoiser, Filter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from sfumato.estimates import Estimate


log = logging.getLogger(__name__)
FILTERS = Kind(Annotated[tuple[Callable[..., Any], ...], Field(title="a tuple of filters")])


class DiffusionLM:
    """Load, generate, stream, infill, score, save."""

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerFast",
        options: GenerationOptions | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.special = special_ids(tokenizer)
        self.options = options or GenerationOptions()
        self.calibration: Calibration | None = None  # of these weights, if they have one
        self.network = Network(model)
        config = model.config
        check_tokenizer(config, tokenizer, self.special)
        self.corruption = corruption_from(config.corruption, config.vocab_size, self.special.mask)
        self.autoregressive = config.objective == "next_token"
        # of a model that writes block after block, each after clean text
        self.block_size = model.attend.size if isinstance(model.attend, BlockCausal) else None
        mask = self.special.mask
        own = Full(model, mask, shift=config.shift)
        self.denoiser = autoregressive(model, mask) if self.autoregressive else own
        ends = {self.special.eos, self.special.pad} - {None}
        self.reader = PageReader(tokenizer, frozenset(ends))
        self.given = Given(tokenizer, self.special, self.reader, config.vocab_size)
        # ids that are not text: special tokens of any kind, and rows of the model without a token
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        unused = range(len(tokenizer), config.vocab_size)
        self.never = frozenset({*special, *self.special.all, *unused})

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "stories",
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str = torch.float32,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        progress: bool = False,
    ) -> "DiffusionLM":
        """Load a folder, a model on the Hugging Face Hub, or "stories", the shipped one.

        Nothing in it is run or unpickled. `device` "auto" is this machine's accelerator, or the
        CPU; `dtype` "auto" is that of the stored weights. `revision`, `token` and `cache_dir` are
        the Hub's; `progress` shows the bars of downloads and of loading.
        """
        where, kind = find_device(device), weights_dtype(dtype)
        with bars(FLAG.check("progress", progress)):
            hub = Place(revision, token, cache_dir)
            model, tokenizer, options, calibration = load_folder(name_or_path, kind, hub)
        lm = cls(model.to(where).eval(), tokenizer, options)
        lm.calibration = calibration
        log.info("loaded %s: %r", name_or_path, lm)
        return lm

    def __repr__(self) -> str:
        return describe(self)

    def to(self, to: str | torch.device | torch.dtype) -> "DiffusionLM":
        """Move the weights to a device, or turn them into a type; returns the same object."""
        self.model.to(weights_dtype(to) if isinstance(to, torch.dtype) else find_device(to))
        self.network = Network(self.model)
        return self

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        message: str = "Upload a sfumato model",
        progress: bool = False,
    ) -> str:
        """Put the model on the Hugging Face Hub, as `save` writes it; returns the address."""
        with bars(FLAG.check("progress", progress)):
            return push(name, self.save, Place(revision, token), private, message)

    def save(self, folder: str | Path) -> None:
        """Write a plain Hugging Face model folder: config, safetensors weights, tokenizer.

        A model that is there stays whole until this one is; other files in the folder stay.
        """
        ids = {f"{role}_token_id": i for role, i in vars(self.special).items() if i is not None}
        with published(Path(folder).expanduser()) as new:
            weights = dict(self.model.named_parameters())
            write_model(new, self.model.config, weights, self.tokenizer)
            write_tokenizer(self.tokenizer, new)
            write_generation_config(new, self.options, **ids)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode, and back."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def generate(
        self,
        prompt: Texts = "",
        *,
        source: Texts | None = None,
        num_samples: int = 1,
        filters: Sequence[Filter] = (),
        **changes: Unpack[Changes],
    ) -> Generation:
        """Write text after each prompt (none: from nothing); `changes` are `GenerationOptions`.

        A model trained on pairs writes from `source`, read once: by its encoder, or as text before
        the prompt. `num_samples` texts for every prompt. The same seed gives a row the same text
        whatever other rows are in the batch.
        """
        request = self.start(
            prompt, source=source, num_samples=num_samples, filters=filters, **changes
        )
        return self.finish(Page.last(self.run(request)))

    def stream(
        self,
        prompt: Texts = "",
        *,
        source: Texts | None = None,
        num_samples: int = 1,
        filters: Sequence[Filter] = (),
        **changes: Unpack[Changes],
    ) -> Iterator[Page]:
        """`generate`, page after page: the blank one first, the finished one last.

        `show` makes text of a page, `finish` a `Generation` of the last.
        """
        request = self.start(
            prompt, source=source, num_samples=num_samples, filters=filters, **changes
        )
        return self.run(request)

    def infill(
        self,
        text: Texts,
        *,
        source: Texts | None = None,
        gap_length: int | str | tuple[int, int] = 16,
        num_samples: int = 1,
        candidates: int | None = None,
        log_probs: bool = False,
        filters: Sequence[Filter] = (),
        **changes: Unpack[Changes],
    ) -> Generation:
        """Fill the gaps (`____`) of a text; what is around them stays as it is, byte by byte.

        Every gap gets `gap_length` tokens; of a range, as (2, 12), or of "auto", from 1 to 16, the
        model chooses a number for each gap (`lm.gaps`). With `candidates`, so many of the
        likeliest different fills, best first, with their log-probabilities (`lm.fills`); with
        `log_probs`, those of the fills that were written, given their lengths.
        """
        told = FLAG.check("log_probs", log_probs)  # candidates have theirs anyway
        if candidates is not None:
            asked = (*repeated(text, source, num_samples), candidates, gap_length, filters, changes)
            return find_candidates(self, *asked)
        asked = {"source": source, "gap_length": gap_length, "num_samples": num_samples}
        request = self.start_infill(text, **asked, filters=filters, **changes)
        last = Page.last(self.run(request))
        nats = fill_log_probs(self, last, filters) if told else ()
        return replace(self.finish(last), log_probs=nats)

    def show(self, page: Page, row: int = 0, noise: str = NOISE) -> str:
        """A page as text, given text included, with `noise` where nothing is decided yet."""
        return self.reader.show(page, row, noise)

    def score(
        self, text: Texts, *, source: Texts | None = None, num_samples: int = 32, seed: int = 0
    ) -> "list[Estimate]":
        """Nats per token of each text: the bound on -log p, from `num_samples` random maskings.

        The error of each is that of the sampling, and does not depend on the other texts. An
        autoregressive model's score is exact. `sfumato.likelihood.bounds` has other estimators.
        """
        from sfumato.lm.scores import score

        return score(self, text, source, num_samples, seed)

    def rows(self, texts: Sequence[str]) -> tuple[Batch, Tensor, Tensor]:
        """Texts laid out as in training, where they are [B, L], and whose each row is [B].

        bos, tokens, eos; a text longer than the canvas goes on in further rows. The rest of a row
        counts only where the model has learnt how texts end.
        """
        from sfumato.lm.scores import text_rows

        return text_rows(self, texts)

    # --- from a request to a canvas, to pages, to text ---

    def start(
        self,
        prompt: Texts = "",
        *,
        source: Texts | None = None,
        num_samples: int = 1,
        filters: Sequence[Filter] = (),
        **changes: Unpack[Changes],
    ) -> Request:
        """Check a request and lay out its canvas; `run` writes it, `finish` reads it."""
        options = self._changed(changes)
        prompts, sources = repeated(prompt, source, num_samples)
        check_size(len(prompts), options.length or 1, options.num_steps)
        stems = [self.given.stem(prompt) for prompt in prompts]
        shown = stems if options.free else prompts
        given = [self.given.opening(ids) for ids in self.encode(stems)]
        longest = max(map(len, given))
        limit = self.model.config.max_position_embeddings
        limit = limit if options.length else options.canvas or limit
        if not (self.block_size and options.length):  # blocks slide over a text of any length
            check_room(longest, options.length or options.grow or 1, limit)
        left = hidden = None
        most = [len(ids) + options.length if options.length else limit for ids in given]
        if options.length is None or options.grow or self.block_size:
            new = options.grow or options.length
            stops = [len(ids) + new if new else limit for ids in given]
            check_size(len(stops), max(most), options.num_steps)
            tokens, fixed = template(given, max(stops), self.special.mask)
            rows = [
                (one, slice(len(ids), stop))
                for one, ids, stop in zip(shown, given, most, strict=True)
            ]
            for row, stop in enumerate(stops):
                tokens[row, stop:], fixed[row, stop:] = self.special.filler, True
        else:
            check_size(len(given), options.length + longest, options.num_steps)
            tokens, fixed = template([[] for _ in given], options.length, self.special.mask)
            left, hidden = left_padded(given, self.special.filler)
            rows = [(one, slice(0, options.length)) for one in shown]
        # a text may end, and contains no other special token
        never = self.never - self.reader.ends
        spaced = [[r[1].start] * (p != s) for p, s, r in zip(prompts, stems, rows, strict=True)]
        automaton = self.given.automaton(options, never)
        request = self._request(
            options, rows, tokens, fixed, spaced, never, filters, sources, automaton
        )
        if left is not None and hidden is not None and left.shape[1]:
            request = replace(request, left=left.to(self.device), hidden=hidden.to(self.device))
        if self.calibration is not None:
            self.calibration.warn(options, self.options, request.canvas.noisy)
        return self._checked(request)

    def start_infill(
        self,
        text: Texts,
        *,
        source: Texts | None = None,
        gap_length: int | str | tuple[int, int] = 16,
        num_samples: int = 1,
        filters: Sequence[Filter] = (),
        **changes: Unpack[Changes],
    ) -> Request:
        """The same for `infill`."""
        check_sees_gaps(self.autoregressive, self.block_size)
        wanted, options = GapLength.of(gap_length), self._changed(changes)
        padded = options.layout == "padded"
        wanted.check(padded, self.corruption)
        for name in ("length", "grow", "stop"):
            if getattr(options, name) != getattr(self.options, name):
                raise ConfigError(f"infilling has no {name}: use gap_length, tokens for each gap")
        options = replace(options, grow=None, grow_options={}, stop=())  # those of the model
        texts, sources = repeated(text, source, num_samples)
        gapped = [self.given.gapped(one, options.free) for one in texts]
        lengths = [one.count + wanted.low * one.gaps for one in gapped]
        longest, canvas = max(lengths), options.canvas or 0
        check_gaps_fit(lengths, canvas, padded)
        automaton = self.given.automaton(options, self.never)
        with self.inference():
            chosen = gap_lengths(
                gapped,
                sources or [""] * len(gapped),
                wanted,
                automaton,
                self._read,
                self.corruption,
                room=canvas,
                end=self.special.eos if self.special.filler == self.special.eos else None,
                temperature=options.temperature,
                rng=Rng.from_seed(options.seed or 0, len(gapped), device=self.device).fold(2),
            )
        laid = [one.laid(each) for one, each in zip(gapped, chosen, strict=True)]
        width = canvas if padded else longest
        check_size(len(gapped), width, options.num_steps)
        tokens, _ = template([ids for _, ids, _ in laid], width, self.special.filler)
        rows, spaced = [parts for parts, _, _ in laid], [places for _, _, places in laid]
        # a gap does not end the text: what follows it is given
        request = self._request(
            options, rows, tokens, tokens >= 0, spaced, self.never, filters, sources, automaton
        )
        return self._checked(request)

    def run(self, request: Request) -> Iterator[Page]:
        """Write a request, page after page."""
        page, watch = Page.blank(request), Watch(request, self.reader)
        yield page
        with self.inference():
            for canvas in self._written(request):
                page = page.after(canvas)
                yield page
                if watch.done(page):
                    return

    def _written(self, request: Request) -> Iterator[Canvas]:
        """Where a grammar has so few texts that each can be scored, with its texts drawn."""
        finite = Finite.of(request, self.corruption, self.encode, self.special)
        cut = self.autoregressive or not (request.options.lookahead or self.block_size)
        request = (
            request if finite is None else draw_texts(request, finite, self._canvases, cut=cut)
        )
        block = request.options.block or self.block_size or request.canvas.tokens.shape[1]
        return written(request, self._canvases, block < request.canvas.tokens.shape[1])

    def _canvases(self, request: Request) -> Iterator[Canvas]:
        options, written = request.options, (request.canvas, request.step, request.rng)
        alone = options.torch_compile and len(request.rows) == 1
        network = self.network.compute(options.precision, alone)
        shared: dict[str, Any] = {"num_steps": options.num_steps, "filters": request.filters}
        ending = {"ends": tuple(sorted(self.reader.ends)), "filler": self.special.filler}
        if self.block_size:
            reader = CachedReader(network, self.special.mask, self.block_size)
            return generate_blocks(reader, *written, **shared, **ending)
        denoiser: Full | Cached = replace(self.denoiser, model=network)
        if self.autoregressive:
            denoiser = Cached(network, self.special.mask)
        shown: Denoiser
        if options.approx_cache:
            assert isinstance(denoiser, Full), "a model of full attention"
            kept = ApproximateCache(denoiser, options.approx_cache, refresh=options.approx_refresh)
            left = request.left
            shown = kept if left is None else kept.given(left=left, left_hidden=request.hidden)
        else:
            shown = reading(request, denoiser, self.special.all)
        if options.grow:
            assert isinstance(shown, Full), "neither guided nor cached: this was refused"
            places = [part for row in request.rows for part in row if isinstance(part, slice)]
            own = {"places": places, "block": options.block}
            return generate_growing(shown, *written, options.growth(), **own, **shared, **ending)
        around = {"block": options.block, "lookahead": options.lookahead}
        return generate(shown, *written, **shared, **around, **ending)

    def finish(self, page: Page) -> Generation:
        """Read the last page of a request."""
        return self.reader.finish(page)

    def _changed(self, changes: Changes) -> GenerationOptions:
        options = self.options.with_changes(**changes)
        config = self.model.config
        options = options.within(config.max_position_embeddings, config.vocab_size)
        if self.autoregressive:
            options = options.one_by_one()
        elif self.block_size:
            options = options.in_blocks(self.block_size, config.shift)
        self.network.check(options.precision, options.torch_compile)
        options.check_growth(self.corruption, self.autoregressive or bool(self.block_size))
        options.check_approximate(self.corruption, self.autoregressive or bool(self.block_size))
        options.check_compile(self.autoregressive or bool(self.block_size))
        seed = secrets.randbits(31) if options.seed is None else options.seed
        return replace(options, seed=seed)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, with none added."""
        return self.given.encode(texts)

    def _request(
        self,
        options: GenerationOptions,
        rows: Sequence[tuple[RowPart, ...]],
        tokens: Tensor,
        fixed: Tensor,
        spaced: Sequence[Sequence[int]],  # of each row, where a token must begin with a space
        never: frozenset[int],
        filters: Sequence[Filter],
        sources: Sequence[str],  # of each row, or none at all
        automaton: Automaton | None,
    ) -> Request:
        rng = Rng.from_seed(options.seed or 0, len(rows), device=self.device)
        tokens, fixed = tokens.to(self.device), fixed.to(self.device)
        at = torch.zeros_like(fixed)
        for row, places in enumerate(spaced):
            at[row, places] = True
        own = (Allowed(at, self.given.spaced.to(self.device)),) if any(spaced) else ()
        led = {(row, place) for row, places in enumerate(spaced) for place in places}
        rule, extra = options.rule(self.corruption), FILTERS.check("filters", filters)
        return Request(
            options=options,
            rows=tuple(rows),
            canvas=blank(self.corruption, tokens, fixed, rng.fold(0)),
            rng=rng.fold(1),
            step=rule if automaton is None else constrain(rule, automaton, spans(rows, led)),
            filters=(*own, *options.filters(tuple(sorted(never))), *extra),
            led=frozenset() if options.free else frozenset(led),
            source=self.source_rows(sources) if sources else None,
        )

    def _checked(self, request: Request) -> Request:
        reads = isinstance(self.model, EncoderDecoder)
        positions = None if reads else self.model.config.max_position_embeddings
        check_conditions(request, self.autoregressive, bool(self.block_size), positions)
        check_particles(request)
        return request

    def _read(self, source: str, rows: int) -> Denoiser:
        """The denoiser of so many rows that has read a source, if there is one."""
        if not source or not isinstance(self.denoiser, Full):
            return self.denoiser
        return self.denoiser.conditioned(self.source_rows([source] * rows))

    def source_rows(self, sources: Sequence[str]) -> Tensor:
        """Tokens of sources as prepared data have them, [B, S]."""
        return source_rows(self.encode(sources), self.special).to(self.device)
