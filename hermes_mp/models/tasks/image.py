"""Images, read by Pillow and prepared by transformers' Pillow-backed processors: small boards have no torchvision."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch

from hermes_mp.errors import BadImage, CallTooLarge, MissingPackage, UnsupportedCheckpoint
from hermes_mp.models.tasks.choice import IMAGE_CLASSIFICATION, IMAGE_EMBEDDING
from hermes_mp.models.tasks.classification import scored
from hermes_mp.models.tasks.task import Answer, Say, given, number, passes
from hermes_mp.models.tasks.text_input import one_line

TOP = 5
PIXEL_NBYTES = 4  # of a decoded image, and of each copy of it; measured, as are those below
DECODING_NBYTES = {"PNG": 4, "BMP": 4, "JPEG": 5}  # at most, the decoded image included
DECODING_OTHERS_NBYTES = 16  # WebP, and others that decode all of it before they hand it over
PROGRESSIVE_NBYTES = 8
PREPARING_NBYTES = 13  # transformers' processor, besides the image, where it resizes itself
ORIENTATION = 0x0112  # the EXIF tag; 1: upright


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
        self.size = _fixed_size(self.processor)

    def read(self, request: dict[str, Any]) -> torch.Tensor:
        """The pixels [1, channels, height, width] of a request, in the model's dtype.

        Raises WrongInput, BadImage; CallTooLarge where the image needs more than the request's `room_nbytes`.
        """
        _, path = given(request, ("image",), self.model)
        image = self._open(str(path), request.get("room_nbytes"))
        if self.size is not None:
            # What the processor is about to do, without its three copies of the whole image.
            image = image.resize(self.size, self.processor.resample)
        pixels: torch.Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"]
        return pixels.to(self.model.dtype)

    def _open(self, path: str, room_nbytes: int | None) -> Any:
        """The image of a file as RGB, turned as its EXIF data says. Never a URL: nothing is fetched."""
        from PIL import Image, ImageOps

        broken = (OSError, SyntaxError, ValueError, IndexError, struct.error, Image.DecompressionBombError)
        try:
            with Image.open(path) as image:
                if room_nbytes is not None:
                    self._check(path, image, room_nbytes)
                ImageOps.exif_transpose(image, in_place=True)
                image.load()
                return image if image.mode == "RGB" else image.convert("RGB")
        except FileNotFoundError as error:
            raise BadImage(f"{path} does not exist") from error
        except broken as error:
            raise BadImage(f"{path} cannot be read as an image: {one_line(error)}") from error

    def _check(self, path: str, image: Any, room_nbytes: int) -> None:
        """By what the file says of itself, before it is decoded."""
        each = DECODING_NBYTES.get(image.format, DECODING_OTHERS_NBYTES)
        if image.info.get("progressive"):
            each = PROGRESSIVE_NBYTES
        if self.size is None:
            each = max(each, PIXEL_NBYTES + PREPARING_NBYTES)
        if image.mode != "RGB":
            each += PIXEL_NBYTES
        pixels = image.width * image.height
        # Asked for its EXIF data, a PNG is decoded: so only if that much is fine.
        if each * pixels <= room_nbytes and image.getexif().get(ORIENTATION, 1) != 1:
            each += PIXEL_NBYTES
        if each * pixels > room_nbytes:
            raise CallTooLarge(
                f"{path} has {image.width} x {image.height} pixels, which need {each * pixels / 2**20:.1f} MiB to "
                f"prepare, but {room_nbytes / 2**20:.1f} MiB are left for that",
                "scale the image down, or raise --memory",
            )


def _fixed_size(processor: Any) -> tuple[int, int] | None:
    """(width, height), where the processor first of all resizes to just that, by transformers' common code."""
    from transformers.image_processing_backends import PilBackend

    kind = type(processor)
    common = all(getattr(kind, name, None) is getattr(PilBackend, name) for name in ("resize", "_preprocess"))
    size = getattr(processor, "size", None) or {}
    width, height = size.get("width"), size.get("height")
    if not common or not processor.do_resize or not width or not height or processor.resample is None:
        return None
    return width, height


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
