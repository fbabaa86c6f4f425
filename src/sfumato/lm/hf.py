"""The "text-diffusion" pipeline of Hugging Face's transformers.

sfumato.lm.hf.register()
pipe = transformers.pipeline("text-diffusion", model="folder or hub name")
print(pipe("Once upon a time", num_steps=64, seed=0)[0]["generated_text"])
"""

from typing import Any, Unpack

from transformers import AutoModelForMaskedLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

import sfumato.models  # noqa: F401 (teaches the Auto classes our types)
from sfumato.decoding.changes import Changes
from sfumato.decoding.options import GenerationOptions
from sfumato.lm.folders import find_folder
from sfumato.lm.generation_config import read_generation_config
from sfumato.lm.model import DiffusionLM
from sfumato.lm.pages import Generation

TASK = "text-diffusion"


class PipelineChanges(Changes, total=False):
    """What the pipeline takes: `GenerationOptions`, and how inputs are fed."""

    num_samples: int
    source: str | list[str] | None
    batch_size: int
    num_workers: int


class TextDiffusionPipeline(Pipeline):
    """`DiffusionLM.generate` for every prompt; options are those of `GenerationOptions`.

    Returns [{"generated_text": prompt and new text}, ...], one for each of `num_samples`.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        place = self.model.name_or_path  # empty for a model that was not loaded
        options = read_generation_config(find_folder(place)) if place else GenerationOptions()
        self.lm = DiffusionLM(self.model, self.tokenizer, options)  # type: ignore[arg-type]

    def __call__(self, inputs: str | list[str], **changes: Unpack[PipelineChanges]) -> Any:  # type: ignore[override]
        """A list for a prompt, a list of such for several."""
        return super().__call__(inputs, **changes)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        return {}, options, {}

    def preprocess(self, input_: str, **unused: Any) -> dict[str, Any]:
        return {"prompt": input_}

    def _forward(self, input_tensors: dict[str, Any], **options: Any) -> Any:
        return self.lm.generate(**input_tensors, **options)

    def postprocess(self, model_outputs: Generation, **unused: Any) -> list[dict[str, str]]:  # type: ignore[override]
        return [{"generated_text": text} for text in model_outputs.full_texts]


def register() -> None:
    """Teach `transformers.pipeline` the task; once is enough."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK, TextDiffusionPipeline, pt_model=AutoModelForMaskedLM, type="text"
        )
