"""`sfumato tokenizer train` and `sfumato data prepare`: from text to what a model is trained on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.inputs import open_source
from sfumato.cli.options import JsonOption, LimitOption, Reading, grouped
from sfumato.cli.terminal import show_status
from sfumato.errors import ConfigError, DataError
from sfumato.lm.folders import STORIES, STORIES_INFILL, find_folder
from sfumato.storage.publish import check_free


@dataclass(frozen=True)
class Tokens:
    """The tokenizer that text is prepared with."""

    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name of one, or stories.")
    ] = None
    add_mask_token: Annotated[bool, typer.Option(help="If it has none.")] = False
    eos_token: Annotated[
        str | None, typer.Option(help="What ends a document, if it says nothing of it.")
    ] = None
    vocab_size: Annotated[
        int | None, typer.Option(help="Or: train one of this size.", show_default="8192")
    ] = None
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Take one that changes text; count what it changes.")
    ] = False


@dataclass(frozen=True)
class Pairing:
    """How pairs of texts are found, where pairs are wanted."""

    source_field: Annotated[
        str | None, typer.Option(help="For pairs: column or key of what is written from.")
    ] = None
    target_field: Annotated[str | None, typer.Option(help="And of what is written.")] = None
    pairs: Annotated[
        str | None, typer.Option(help="Or: 'first-sentence' writes the rest of a text from it.")
    ] = None
    skip_empty: Annotated[
        bool, typer.Option("--skip-empty", help="Count pairs with an empty side; don't fail.")
    ] = False

    @property
    def wanted(self) -> bool:
        """Whether pairs are to be made, and not documents."""
        fields = self.source_field is not None or self.target_field is not None
        if self.pairs not in (None, "first-sentence"):
            raise ConfigError(f"unknown --pairs '{self.pairs}'; known: first-sentence")
        if self.pairs is not None and fields:
            raise ConfigError("--pairs cuts one field; leave out --source-field, --target-field")
        if self.skip_empty and not (fields or self.pairs):
            raise ConfigError(
                "--skip-empty is for pairs: name --source-field and --target-field, or --pairs"
            )
        return fields or self.pairs is not None


@grouped
def tokenizer_train(
    source: Annotated[str, typer.Argument(help="File, folder, or hub data set.")],
    out: Annotated[Path, typer.Argument(help="Folder for the tokenizer.")],
    reading: Reading,
    vocab_size: Annotated[int, typer.Option(help="Tokens, special ones included.")] = 8192,
    limit: LimitOption = None,
) -> None:
    """Learn a byte-level BPE tokenizer."""
    from sfumato.data.preparation import TRAINING_CHARACTERS
    from sfumato.data.tokenizer_files import save_tokenizer
    from sfumato.data.tokenizer_training import train_tokenizer

    check_free(out, DataError)
    wanted = open_source(source, reading, limit=limit)
    with show_status("learning"):
        tokenizer = train_tokenizer(wanted.sample(TRAINING_CHARACTERS), vocab_size)
    save_tokenizer(tokenizer, out)
    fewer = f", not {vocab_size:,}: there is little text" if len(tokenizer) < vocab_size else ""
    typer.echo(f"{len(tokenizer):,} tokens{fewer}: {out}")


@grouped
def data_prepare(
    source: Annotated[str, typer.Argument(help="File, folder, or hub data set.")],
    out: Annotated[Path, typer.Argument(help="Folder for the prepared data.")],
    tokens: Tokens,
    reading: Reading,
    pairing: Pairing,
    validation: Annotated[float, typer.Option(help="Share of the text to hold out.")] = 0.05,
    streaming: Annotated[bool, typer.Option(help="Stream a hub data set.")] = True,
    limit: LimitOption = None,
    workers: Annotated[int | None, typer.Option(help="Threads; none: one a core.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tokenize text into memory-mapped files. Run it again after a kill and it goes on."""
    from sfumato.data.pairs import Pairs
    from sfumato.data.preparation import prepare
    from sfumato.data.prepared_pairs import prepare_pairs
    from sfumato.data.tally import tell as told
    from sfumato.data.tokenizer_files import load_tokenizer

    for option, given in (
        ("--add-mask-token", tokens.add_mask_token),
        ("--eos-token", tokens.eos_token is not None),
    ):
        if given and tokens.tokenizer is None:
            raise ConfigError(f"{option} is for a tokenizer given by --tokenizer")
    vocab_size, tokenizer = tokens.vocab_size, None
    if tokens.tokenizer is None and vocab_size is None:
        vocab_size = 8192
    wanted = open_source(source, reading, streaming=streaming, limit=limit)
    fields = (pairing.source_field, pairing.target_field)
    pairs = Pairs(wanted, *fields, pairing.skip_empty) if pairing.wanted else None
    with show_status("reading", "give the same command again to go on") as tell:
        if tokens.tokenizer is not None:
            tokenizer = load_tokenizer(
                _place(tokens.tokenizer),
                add_mask_token=tokens.add_mask_token,
                eos_token=tokens.eos_token,
            )
        common: dict[str, Any] = {
            "vocab_size": vocab_size,
            "validation": validation,
            "workers": workers,
            "lossy": tokens.lossy,
            "progress": lambda p: tell(f"{p.documents:,} documents, {p.tokens:,} tokens"),
        }
        if pairs is None:
            facts = prepare(wanted, out, tokenizer, **common).facts
        else:
            both = prepare_pairs(pairs, out, tokenizer, **common)
            sides = {"sources": both.sources.facts, "targets": both.targets.facts}
            facts = {**both.facts, **sides}
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for line in told(facts["taken"] if pairs is None else facts["targets"]["taken"]):
        typer.echo(line)
    if pairs is None:
        _tell_splits(facts)
    else:
        for side in ("sources", "targets"):
            _tell_splits(facts[side], f"{side}, ")
        for reason, count in facts["skipped"].items():
            typer.echo(f"skipped: {count:,} with {reason}")
        facts = facts["targets"]
    typer.echo(f"{facts['tokenizer']['vocab_size']:,} tokens in the vocabulary: {out}")


def _tell_splits(facts: dict[str, Any], side: str = "") -> None:
    for name, counts in facts["splits"].items():
        lengths = counts["lengths"]
        typer.echo(
            f"{side}{name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{counts['bytes_per_token']:.2f} bytes a token"
            + (f", {lengths['p50']:,} tokens in the median document, " if lengths else "")
            + (f"{lengths['p100']:,} in the longest" if lengths else "")
        )
    if facts["changes"]["documents"]:
        kept, whole = (
            sum(counts[name] for counts in facts["splits"].values())
            for name in ("kept_bytes", "bytes")
        )
        typer.echo(
            f"{side}changed by the tokenizer: {facts['changes']['documents']:,} documents, "
            f"{whole:,} bytes are {kept:,}; {facts['changes']['example']}"
        )


def _place(tokenizer: str) -> str | Path:
    """Where a tokenizer is; that of a model which comes with the package by the model's name."""
    shipped = tokenizer in (STORIES, STORIES_INFILL) and not Path(tokenizer).exists()
    return find_folder(tokenizer) if shipped else tokenizer
