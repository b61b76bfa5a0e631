"""Which task a model is for, by its class, as transformers' own tables of classes have it: no name list of ours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hermes_mp.errors import UnsupportedCheckpoint

GENERATION = "text-generation"
CLASSIFICATION = "text-classification"
FILL_MASK = "fill-mask"
EMBEDDING = "embedding"
SENTENCE_EMBEDDING = "sentence-embedding"
IMAGE_CLASSIFICATION = "image-classification"
IMAGE_EMBEDDING = "image-embedding"


def choose_task(config: Any, model_class_name: str, directory: Path) -> str:
    """The task of a model of this class; UnsupportedCheckpoint where it is none of ours."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedCheckpoint(
            f"{model_class_name} is an encoder-decoder, which is not supported", "use a decoder or an encoder"
        )
    takes_images = getattr(getattr(transformers, model_class_name, None), "main_input_name", "") == "pixel_values"
    tables = (
        (GENERATION, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (FILL_MASK, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
        (CLASSIFICATION, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        (IMAGE_CLASSIFICATION, auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
        (IMAGE_EMBEDDING if takes_images else EMBEDDING, auto.MODEL_MAPPING_NAMES),
        (EMBEDDING, auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES),
    )
    for task, table in tables:
        if model_class_name in _flat(table.values()):
            is_sentences = task == EMBEDDING and (directory / "modules.json").is_file()
            return SENTENCE_EMBEDDING if is_sentences else task
    raise UnsupportedCheckpoint(
        f"{model_class_name} is for a task that is not supported",
        "use a model for text generation, text or image classification, fill-mask or embeddings",
    )


def _flat(names: Iterable[Any]) -> set[str]:
    return {one for name in names for one in ((name,) if isinstance(name, str) else name)}
