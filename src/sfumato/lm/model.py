"""`DiffusionLM`: a model, its tokenizer and its corruption, under one name.

lm = DiffusionLM.from_pretrained("folder or hub name")
print(lm.generate("Once upon a time").text)
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from sfumato.arguments import FLAG
from sfumato.data.special_tokens import special_ids
from sfumato.data.tokenizer_files import write_tokenizer
from sfumato.decoding.changes import Changes
from sfumato.decoding.decoder import Writer
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.request import Request
from sfumato.decoding.writing import write
from sfumato.denoisers.full import Full
from sfumato.devices import find_device, weights_dtype
from sfumato.lm.calibrated import Calibration
from sfumato.lm.candidates import candidates as find_candidates
from sfumato.lm.candidates import fill_log_probs
from sfumato.lm.describe import describe
from sfumato.lm.folders import check_tokenizer, load_folder, write_model
from sfumato.lm.generation_config import write_generation_config
from sfumato.lm.pages import NOISE, Generation, Page, PageReader
from sfumato.lm.prompts import Prompts
from sfumato.lm.request import continuation, infilling
from sfumato.lm.stops import Watch
from sfumato.lm.texts import Texts, repeated
from sfumato.models.packed import Network
from sfumato.noise.corruption import corruption_from
from sfumato.storage.hub import Place, bars, push
from sfumato.storage.publish import published
from sfumato.types import Batch, Filter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from sfumato.estimates import Estimate


log = logging.getLogger(__name__)


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
        self.denoiser = Full.of(model, self.special.mask)
        ends = {self.special.eos, self.special.pad} - {None}
        self.reader = PageReader(tokenizer, frozenset(ends))
        self.prompts = Prompts(tokenizer, self.special, self.reader, config.vocab_size)
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
            write_model(new, self.model, weights, self.tokenizer)
            write_tokenizer(self.tokenizer, new)
            write_generation_config(new, self.options, **ids)

    @property
    def writer(self) -> Writer:
        """The model as decoders want it."""
        return Writer(self.network, self.corruption, self.special, self.reader.ends)

    @property
    def autoregressive(self) -> bool:
        """Whether the model writes one token after another."""
        return self.writer.one_by_one

    @property
    def block_size(self) -> int | None:
        """Of a model that writes block after block, each after clean text."""
        return None if self.autoregressive else self.writer.block_size

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
        return continuation(self, prompt, source, num_samples, filters, changes)

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
        return infilling(self, text, source, gap_length, num_samples, filters, changes)

    def run(self, request: Request) -> Iterator[Page]:
        """Write a request, page after page."""
        page, watch = Page.blank(request), Watch(request, self.reader)
        yield page
        with self.inference():
            for canvas in write(self.writer, request, self.encode):
                page = page.after(canvas)
                yield page
                if watch.done(page):
                    return

    def finish(self, page: Page) -> Generation:
        """Read the last page of a request."""
        return self.reader.finish(page)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, with none added."""
        return self.prompts.encode(texts)

    def read_for(self, source: str, rows: int) -> Full:
        """The denoiser of so many rows that has read a source, if there is one."""
        if not source:
            return self.denoiser
        return self.denoiser.conditioned(self.source_rows([source] * rows))

    def source_rows(self, sources: Sequence[str]) -> Tensor:
        """Tokens of sources as prepared data have them, [B, S]."""
        return self.prompts.sources(sources).to(self.device)
