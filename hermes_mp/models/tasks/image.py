"""Images, read by Pillow and prepared by transformers' Pillow-backed processors: small boards have no torchvision."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch

from hermes_mp.errors import BadImage, MissingPackage, UnsupportedCheckpoint
from hermes_mp.models.tasks.choice import IMAGE_CLASSIFICATION, IMAGE_EMBEDDING
from hermes_mp.models.tasks.classification import scored
from hermes_mp.models.tasks.task import Answer, Say, given, number, passes
from hermes_mp.models.tasks.text_input import one_line

TOP = 5


class ImageInput:
    """Turns an image file into the pixels a model takes."""

    def __init__(self, model: Any, directory: Path) -> None:
        try:
            import PIL  # noqa: F401
        except ImportError as error:
            raise MissingPackage("images need Pillow, which is not installed", "run `pip install pillow`") from error
        from transformers import AutoImageProcessor

        self.model = model
        try:
            self.processor = AutoImageProcessor.from_pretrained(
                str(directory), backend="pil", local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            raise UnsupportedCheckpoint(
                f"{directory} does not say how images are prepared: {one_line(error)}",
                "add the model's preprocessor_config.json",
            ) from error

    def read(self, request: dict[str, Any]) -> torch.Tensor:
        """The pixels [1, channels, height, width] of a request, in the model's dtype. WrongInput, BadImage."""
        _, path = given(request, ("image",), self.model)
        pixels: torch.Tensor = self.processor(images=open_image(str(path)), return_tensors="pt")["pixel_values"]
        return pixels.to(self.model.dtype)


def open_image(path: str) -> Any:
    """The image of a file as RGB, turned as its EXIF data says. Never a URL: nothing is fetched."""
    from PIL import Image, ImageOps

    broken = (OSError, SyntaxError, ValueError, IndexError, struct.error, Image.DecompressionBombError)
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise BadImage(f"{path} does not exist") from error
    except broken as error:
        raise BadImage(f"{path} cannot be read as an image: {one_line(error)}") from error


class ImageClassification:
    """Says what is on an image."""

    def __init__(self, model: Any, directory: Path, options: dict[str, Any]) -> None:
        self.model = model
        self.input = ImageInput(model, directory)

    def answer(self, request: dict[str, Any], say: Say, final: bool) -> Answer:
        """The five best labels."""
        pixels = self.input.read(request)
        with passes(self.model, 1, final), torch.no_grad():
            logits = self.model(pixel_values=pixels).logits[0]
        return {"task": IMAGE_CLASSIFICATION, "labels": scored(logits, self.model.config, TOP)}


class ImageEmbedding:
    """A base checkpoint's vector of an image: the mean over its patches and special tokens."""

    def __init__(self, model: Any, directory: Path, options: dict[str, Any]) -> None:
        self.model = model
        self.input = ImageInput(model, directory)

    def answer(self, request: dict[str, Any], say: Say, final: bool) -> Answer:
        """The same keys as a text's embedding."""
        pixels = self.input.read(request)
        with passes(self.model, 1, final), torch.no_grad():
            vectors = self.model(pixel_values=pixels).last_hidden_state
        pooled = vectors[0].float().flatten(1).mean(dim=1) if vectors.ndim == 4 else vectors[0].float().mean(dim=0)
        return {
            "task": IMAGE_EMBEDDING,
            "pooling": "mean",
            "normalized": False,
            "tokens": vectors.shape[1],
            "dimensions": len(pooled),
            "embedding": [number(one) for one in pooled.tolist()],
        }
