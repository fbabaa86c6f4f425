"""Is a model's folder whole? What is looked at on request, as it reads every byte."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfumato.data.special_tokens import special_ids
from sfumato.data.tokenizer_files import load_tokenizer
from sfumato.doctor.installation import Finding
from sfumato.errors import SfumatoError
from sfumato.lm.folders import (
    MODEL,
    check_tokenizer,
    check_weights,
    find_folder,
    load_weights,
    read_config,
    weight_files,
)
from sfumato.lm.generation_config import read_generation_config
from sfumato.models import FAMILIES
from sfumato.storage.files import check_folder, read_tensors
from sfumato.storage.tensors import DIGEST, check_finite, digest, read_header

FAULT = "fault"


def examine_model(name: str | Path) -> Iterator[Finding]:
    """Look at a model's folder, part by part; changes nothing."""
    try:
        folder = find_folder(name)
        check_folder(folder, MODEL)
        config = read_config(folder)
    except SfumatoError as error:
        yield Finding("config", FAULT, str(error))
        return
    layers, width = config.num_hidden_layers, config.hidden_size
    shape = f"{layers} layers of {width}, {config.attention} attention, {config.objective}"
    yield Finding("config", "ok", shape)
    for part, look in (
        ("weights", _weights),
        ("digest", _digest),
        ("tokenizer", _tokenizer),
        ("options", _options),
    ):
        try:
            yield look(folder, config)
        except SfumatoError as error:
            yield Finding(part, FAULT, str(error))


def _weights(folder: Path, config: Any) -> Finding:
    if config.model_type not in FAMILIES:  # transformers' own, which may rename what it reads
        load_weights(folder, config)
        return Finding("weights", "ok", "finite numbers, as transformers reads them")
    check_weights(folder, config)
    tensors = _tensors(folder)
    check_finite(tensors.items(), folder)
    number = sum(tensor.numel() for tensor in tensors.values())
    return Finding("weights", "ok", f"{number:,} finite numbers, of the config's shapes")


def _digest(folder: Path, config: Any) -> Finding:
    del config
    recorded = [read_header(path, MODEL).metadata.get(DIGEST) for path in weight_files(folder)]
    if None in recorded:
        lacking = "none is recorded, so that damage which changes no size cannot be seen"
        return Finding("digest", "note", f"{lacking}; saving the model anew records one")
    for path, wanted in zip(weight_files(folder), recorded, strict=True):
        found = digest(read_tensors(path, MODEL))
        if found != wanted:
            raise MODEL.fault(
                path, f"changed since it was saved: its values have digest {found}, not {wanted}"
            )
    return Finding("digest", "ok", "the weights are those that were saved")


def _tokenizer(folder: Path, config: Any) -> Finding:
    tokenizer = load_tokenizer(folder)
    check_tokenizer(config, tokenizer, special_ids(tokenizer))
    if config.vocabulary_digest is None:
        told = f"{len(tokenizer):,} tokens; the config does not say whether they are the model's"
        return Finding("tokenizer", "note", f"{told}; saving the model anew makes it say so")
    return Finding("tokenizer", "ok", f"{len(tokenizer):,} tokens, the model's own")


def _options(folder: Path, config: Any) -> Finding:
    options = read_generation_config(folder)
    options.within(config.max_position_embeddings, config.vocab_size)
    return Finding("options", "ok", f"step {options.step or 'ancestral'}, {options.layout} texts")


def _tensors(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in weight_files(folder):
        found |= read_tensors(path, MODEL)
    return found
