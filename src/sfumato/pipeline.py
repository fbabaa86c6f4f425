"""`DiffusionLM`: a model, its tokenizer and its corruption, under one name.

lm = DiffusionLM.from_pretrained("folder or hub name")
print(lm.generate("Once upon a time").text)
"""

import contextlib
import re
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.corruption import corruption_from
from sfumato.data.tokenizer import encode, load_tokenizer, save_tokenizer, special_ids
from sfumato.denoisers import Cached, Full, autoregressive
from sfumato.errors import CheckpointError, ConfigError, DataError
from sfumato.generate import blank, generate
from sfumato.models import FAMILIES
from sfumato.models.attend import HIDDEN, Causal
from sfumato.options import GenerationOptions, read_generation_config, write_generation_config
from sfumato.pages import Generation, Page, Task, left_padded, template
from sfumato.rng import Rng
from sfumato.types import Batch, Denoiser, Filter, Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from sfumato.likelihood import Estimate

SHIPPED = Path(__file__).parent / "shipped" / "stories"  # the model that comes with the package
GAP = "____"  # four or more underscores in a text are a gap to fill


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
        config = model.config
        if config.vocab_size < len(tokenizer):
            raise CheckpointError(
                f"the tokenizer has {len(tokenizer)} tokens, but the model only "
                f"{config.vocab_size}: they do not belong together"
            )
        self.corruption = corruption_from(config.corruption, config.vocab_size, self.special.mask)
        self.options = options or GenerationOptions()
        if self.autoregressive:
            self.denoiser = autoregressive(model, self.special.mask)
        else:
            self.denoiser = Full(model, self.special.mask)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "stories",
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "DiffusionLM":
        """Load a folder, a model on the Hugging Face Hub, or "stories", the shipped one.

        Nothing in it is run or unpickled.
        """
        from transformers import AutoConfig

        folder = Path(name_or_path)
        if str(name_or_path) == "stories" and not folder.exists():
            folder = SHIPPED
        looks_local = str(name_or_path).startswith((".", "/", "~")) or folder.exists()
        if looks_local and not (folder / "config.json").exists():
            raise CheckpointError(
                f"no model at {name_or_path}: expected a folder with config.json, "
                "model.safetensors and tokenizer.json"
            )
        if not looks_local:
            folder = _download(str(name_or_path))
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"cannot read the config in {name_or_path}: {error}") from None
        if config.model_type not in FAMILIES:
            raise CheckpointError(
                f"{name_or_path} holds a model of type '{config.model_type}'; "
                f"expected one of: {', '.join(FAMILIES)}"
            )
        try:
            model = FAMILIES[config.model_type][1].from_pretrained(
                folder, dtype=dtype, use_safetensors=True
            )
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise CheckpointError(f"cannot load the weights in {name_or_path}: {error}") from error
        tokenizer = load_tokenizer(folder)
        return cls(model.to(device).eval(), tokenizer, read_generation_config(folder))

    def save(self, folder: str | Path) -> None:
        """Write a plain Hugging Face model folder: config, safetensors weights, tokenizer."""
        self.model.save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder)
        special = self.special
        ids = {
            "mask_token_id": special.mask,
            "eos_token_id": special.eos,
            "bos_token_id": special.bos,
            "pad_token_id": special.pad,
        }
        write_generation_config(
            folder, self.options, **{k: v for k, v in ids.items() if v is not None}
        )

    @property
    def autoregressive(self) -> bool:
        """The model was trained on next tokens: it writes them one by one, left to right."""
        return self.model.config.objective == "next_token"

    @property
    def device(self) -> torch.device:
        return self.model.device

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        *,
        num_samples: int = 1,
        filters: Sequence[Filter] = (),
        **changes: Any,
    ) -> Generation:
        """Write text after each prompt (none: from nothing); `changes` are `GenerationOptions`.

        `num_samples` texts for every prompt. The same seed gives a row the same text whatever
        other rows are in the batch.
        """
        task = self.start(prompt, num_samples=num_samples, filters=filters, **changes)
        return self.finish(task, _last(self.run(task)))

    def stream(self, prompt: str | Sequence[str] = "", **options: Any) -> Iterator[Page]:
        """`generate`, page after page: the blank one first, the finished one last."""
        return self.run(self.start(prompt, **options))

    def infill(
        self,
        text: str | Sequence[str],
        *,
        gap_length: int = 16,
        num_samples: int = 1,
        **changes: Any,
    ) -> Generation:
        """Fill the gaps (`____`) of a text; what is around them stays as it is, byte by byte.

        Every gap gets `gap_length` tokens.
        """
        task = self.start_infill(text, gap_length=gap_length, num_samples=num_samples, **changes)
        return self.finish(task, _last(self.run(task)))

    def texts(self, page: Page) -> tuple[str, ...]:
        """Each row's text, prompt included, cut where it ends."""
        rows = torch.cat((page.given, page.canvas.tokens), 1)
        return tuple(self._text(row)[1] for row in rows)

    def show(self, page: Page, row: int = 0, noise: str = "\u2591") -> str:
        """A page as text, with `noise` at positions that are not decided yet."""
        shown, run = [], page.given[row].tolist()
        pairs = zip(page.canvas.tokens[row].tolist(), page.canvas.noisy[row].tolist(), strict=True)
        for token, noisy in pairs:
            if not noisy:
                run.append(token)
                continue
            shown.append(self.tokenizer.decode(run, skip_special_tokens=True) + noise)
            run = []
        return "".join(shown) + self.tokenizer.decode(run, skip_special_tokens=True)

    def score(
        self, text: str | Sequence[str], *, num_samples: int = 32, seed: int = 0
    ) -> "list[Estimate]":
        """Nats per token of each text: the bound on -log p, from `num_samples` random maskings.

        The error of each is that of the sampling. An autoregressive model's is exact.
        `sfumato.likelihood` has other estimators.
        """
        from sfumato.likelihood import Likelihood, bound, left_to_right

        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(texts):
            raise DataError("nothing to score: every text needs at least one character")
        batch, text_at, owner = self.rows(texts)
        with _inference(self.model):
            if self.autoregressive:
                rows: Likelihood = left_to_right(self.denoiser, batch)
            else:
                rng = Rng.from_seed(seed, device=self.device)
                rows = bound(self.denoiser, self.corruption, batch, rng, samples=num_samples)
        return replace(rows, tokens=text_at.sum(1)).grouped(owner).per_row

    def rows(self, texts: Sequence[str]) -> tuple[Batch, Tensor, Tensor]:
        """Texts laid out as in training, where they are [B, L], and whose each row is [B].

        bos, tokens, eos; a text longer than the canvas goes on in further rows. The rest of a row
        counts only where the model has learnt how texts end.
        """
        canvas = self.options.canvas or self.model.config.max_position_embeddings
        rows, owner = [], []
        for number, ids in enumerate(encode(self.tokenizer, list(texts))):
            whole = [*self._opening(ids), self.special.eos]
            for start in range(0, len(whole), canvas):
                rows.append(whole[start : start + canvas])
                owner.append(number)
        padded = self.options.layout == "padded"
        width = canvas if padded else max(map(len, rows))
        tokens, text = template(rows, width, self.special.filler)
        batch = Batch(
            tokens,
            torch.ones_like(text) if padded else text,
            torch.zeros_like(tokens) if padded else torch.where(text, 0, HIDDEN),
            torch.arange(len(rows)),
        )
        moved = Batch(*(getattr(batch, f.name).to(self.device) for f in fields(batch)))
        return moved, text.to(self.device), torch.tensor(owner, device=self.device)

    # --- how a request becomes a canvas, and a canvas text ---

    def _rule(self, options: GenerationOptions) -> Step:
        if not self.autoregressive:
            return options.rule(self.corruption)
        if options.step not in ("left_to_right", GenerationOptions.step) or options.block:
            raise ConfigError(
                f"an autoregressive model writes one token after another: step '{options.step}' "
                f"with block {options.block} is not for it; leave both out"
            )
        return replace(options, step="left_to_right").rule(self.corruption)

    def _changed(self, changes: dict[str, Any]) -> GenerationOptions:
        options = self.options.with_changes(**changes)
        largest = self.model.config.max_position_embeddings
        canvas = options.canvas or largest
        if canvas > largest:
            raise ConfigError(f"canvas {canvas} is larger than the model's {largest} positions")
        return replace(options, canvas=canvas)

    def start(
        self,
        prompt: str | Sequence[str] = "",
        *,
        num_samples: int = 1,
        filters: Sequence[Filter] = (),
        **changes: Any,
    ) -> Task:
        """Check a request and lay out its canvas; `run` writes it, `finish` reads it."""
        if num_samples < 1:
            raise ConfigError(f"num_samples must be at least 1, got {num_samples}")
        options = self._changed(changes)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ConfigError("no prompt: give a text, or '' to write from nothing")
        prompts = [p for p in prompts for _ in range(num_samples)]
        given = [self._opening(ids) for ids in encode(self.tokenizer, prompts)]
        longest = max(len(ids) for ids in given)
        canvas = options.canvas or 0
        if options.length is None:
            room = canvas - longest
        else:
            room = min(options.length, self.model.config.max_position_embeddings - longest)
        if room < (options.length or 1):
            raise ConfigError(
                f"the prompt has {longest} tokens of {longest + room} that fit, and "
                f"{options.length or 1} more are wanted; shorten the prompt or the length"
            )
        if options.length is None:
            start, fixed = template(given, canvas, self.special.mask)
            left = hidden = None
        else:
            start, fixed = template([[] for _ in given], options.length, self.special.mask)
            left, hidden = left_padded(given, self.special.filler)
        return self._task(options, prompts, start, fixed, filters, left=left, hidden=hidden)

    def start_infill(
        self,
        text: str | Sequence[str],
        *,
        gap_length: int = 16,
        num_samples: int = 1,
        **changes: Any,
    ) -> Task:
        """The same for `infill`."""
        if gap_length < 1:
            raise ConfigError(f"gap_length must be at least 1, got {gap_length}")
        if num_samples < 1:
            raise ConfigError(f"num_samples must be at least 1, got {num_samples}")
        options = self._changed(changes)
        if options.length is not None and "length" in changes:
            raise ConfigError("infilling has no length: use gap_length, tokens for each gap")
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self._gapped(one, gap_length) for one in texts for _ in range(num_samples)]
        longest, canvas = max(map(len, rows)), options.canvas or 0
        if longest > canvas:
            raise ConfigError(
                f"the text has {longest} tokens with its gaps, more than the canvas of {canvas}; "
                "shorten it or use a smaller gap_length"
            )
        padded = options.layout == "padded"
        if not padded and min(map(len, rows)) < longest:
            raise ConfigError(
                "this model has no padding, so texts of one call must have equally many tokens; "
                "fill them one by one"
            )
        tokens, _ = template(rows, canvas if padded else longest, self.special.filler)
        # a gap never ends the text: what follows it is given
        task = self._task(
            options, [""] * len(rows), tokens, tokens >= 0, (), never=self.special.all
        )
        return replace(task, whole=True)

    def _gapped(self, text: str, gap_length: int) -> list[int]:
        """Tokens of a text with its end, -1 in the gaps."""
        first, *others = encode(self.tokenizer, re.split("_{4,}", text))
        if not others:
            raise ConfigError(f"no gap in the text: mark it with {GAP}")
        row = self._opening(first)
        for ids in others:
            row = row + [-1] * gap_length + ids
        return [*row, self.special.eos]

    def _opening(self, ids: list[int]) -> list[int]:
        """A text starts with bos where the tokenizer has one."""
        return ids if self.special.bos is None else [self.special.bos, *ids]

    def _task(
        self,
        options: GenerationOptions,
        prompts: list[str],
        tokens: Tensor,
        fixed: Tensor,
        filters: Sequence[Filter],
        *,
        never: tuple[int, ...] | None = None,
        left: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Task:
        seed = secrets.randbits(31) if options.seed is None else options.seed
        rng = Rng.from_seed(seed, len(prompts), device=self.device)
        ends = (self.special.eos, self.special.pad)
        if never is None:  # a text may end, and must contain no other special token
            never = tuple(i for i in self.special.all if i not in ends)
        extra = range(len(self.tokenizer), self.model.config.vocab_size)  # rows without a token
        tokens, fixed = tokens.to(self.device), fixed.to(self.device)
        canvas = blank(self.corruption, tokens, fixed, rng.fold(0))
        return Task(
            options,
            tuple(prompts),
            canvas,
            rng.fold(1),
            seed,
            (*options.filters((*never, *extra)), *filters),
            None if left is None else left.to(self.device),
            None if hidden is None else hidden.to(self.device),
        )

    def run(self, task: Task) -> Iterator[Page]:
        """Write a task, page after page."""
        denoiser: Denoiser = self.denoiser
        if self.autoregressive:
            denoiser = Cached(self.model, self.special.mask, Causal(), shift=True)
        if task.left is not None and task.left.shape[1]:
            denoiser = denoiser.given(left=task.left, left_hidden=task.hidden)
        step = self._rule(task.options)
        given = task.canvas.tokens[:, :0] if task.left is None else task.left
        decided = torch.where(task.canvas.fixed, 0, -1)
        page = Page(0, task.canvas, decided, given)
        yield page
        with _inference(self.model):
            pages = generate(
                denoiser,
                task.canvas,
                step,
                task.rng,
                num_steps=None if self.autoregressive else task.options.num_steps,
                block=1 if self.autoregressive else task.options.block,
                lookahead=task.options.lookahead and not self.autoregressive,
                filters=task.filters,
            )
            for number, canvas in enumerate(pages, 1):
                before = page.canvas
                changed = (before.tokens != canvas.tokens) | (before.noisy & ~canvas.noisy)
                decided = torch.where(canvas.noisy, -1, torch.where(changed, number, decided))
                page = Page(number, canvas, decided, given)
                yield page

    def finish(self, task: Task, page: Page) -> Generation:
        texts, tokens = [], []
        for row, fixed in zip(page.canvas.tokens, task.canvas.fixed, strict=True):
            start = 0 if task.whole or task.left is not None else int(fixed.sum())
            ids, text = self._text(row[start:])
            texts.append(text)
            tokens.append(ids)
        new = float((~task.canvas.fixed).sum()) / len(texts)
        return Generation(
            tuple(texts),
            task.prompts,
            tuple(tokens),
            page.step,
            new / max(page.step, 1),
            task.seed,
        )

    def _text(self, row: Tensor) -> tuple[tuple[int, ...], str]:
        """Tokens up to the first end, and their text; bos in front is not text."""
        ids = row.tolist()
        if ids and ids[0] == self.special.bos:
            ids = ids[1:]
        ends = [n for n, i in enumerate(ids) if i in (self.special.eos, self.special.pad)]
        ids = ids[: ends[0]] if ends else ids
        return tuple(ids), self.tokenizer.decode(ids, skip_special_tokens=False)


def _last(pages: Iterator[Page]) -> Page:
    return deque(pages, maxlen=1)[0]


@contextlib.contextmanager
def _inference(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients, and back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _download(name: str) -> Path:
    """A model's files from the Hugging Face Hub; never its code, never pickles."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"'{name}' is neither a folder here nor a model that could be downloaded: "
            f"{str(error).splitlines()[0]}"
        ) from None
