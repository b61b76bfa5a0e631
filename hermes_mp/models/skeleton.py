"""The transformers model without its weights: built on the meta device, with every weight's place in the checkpoint.

Follows `from_pretrained` step by step (class, dtype, key renames, ties, buffers) by calling transformers' own
pieces, so that what is loaded where is never our guess. It reads no weight; it does not know units or slots.
"""

from __future__ import annotations

import copy
import inspect
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hermes_mp.core.header import TensorInfo
from hermes_mp.errors import CheckpointBroken, MissingWeights, UnsupportedCheckpoint, UnsupportedDtype
from hermes_mp.host.checkpoint import Checkpoint

PARAMETER_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BUFFER_DTYPES = PARAMETER_DTYPES | {
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Source:
    """Where one parameter or buffer lies in the checkpoint, and the dtype it is computed in."""

    file: int
    info: TensorInfo
    dtype: torch.dtype

    @property
    def file_dtype(self) -> torch.dtype:
        return BUFFER_DTYPES[self.info.dtype]


@dataclass
class Skeleton:
    """`model` on the meta device; `parameters` by id of the meta parameter (tied names share one object)."""

    model: Any
    checkpoint: Checkpoint
    dtype: torch.dtype
    parameters: dict[int, Source]
    buffers: dict[str, Source]
    made_up: set[str]  # persistent buffers that the file may lack

    def source(self, parameter: torch.Tensor) -> Source:
        return self.parameters[id(parameter)]


def build_skeleton(directory: Path, checkpoint: Checkpoint, dtype: str = "auto") -> Skeleton:
    """The model that `from_pretrained(directory, dtype=dtype)` would give, weights and buffers still on meta.

    Raises UnsupportedCheckpoint, UnsupportedDtype, MissingWeights, CheckpointBroken, each naming what is wrong.
    """
    config = read_config(directory)
    model_class = find_model_class(config, directory)
    config, resolved = _resolve_dtype(config, checkpoint, dtype)
    model = _build_on_meta(model_class, config, resolved, {})
    sources, missing, made_up = _match_names(model, checkpoint, resolved)
    if missing and _only_pooler(missing) and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        # A base checkpoint saved from a masked-language model has no pooler, and an embedding needs none.
        model = _build_on_meta(model_class, config, resolved, {"add_pooling_layer": False})
        sources, missing, made_up = _match_names(model, checkpoint, resolved)
    if missing:
        raise MissingWeights(f"{directory} lacks weights that {model_class.__name__} needs: {_some(sorted(missing))}")
    parameter_names = dict(model.named_parameters(remove_duplicate=False))
    parameters = {id(parameter_names[name]): source for name, source in sources.items() if name in parameter_names}
    buffers = {name: source for name, source in sources.items() if name not in parameter_names}
    for name, source in sources.items():
        allowed = PARAMETER_DTYPES if name in parameter_names else BUFFER_DTYPES
        if source.info.dtype not in allowed:
            raise UnsupportedDtype(f"{name} of {directory} is stored as {source.info.dtype}")
    model.eval()
    model.config.name_or_path = str(directory)
    _read_generation_config(model, directory)
    return Skeleton(model, checkpoint, resolved, parameters, buffers, made_up)


def read_config(directory: Path) -> Any:
    """The directory's configuration; a model that needs code of its own is refused."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise UnsupportedCheckpoint(
            f"transformers cannot read {directory / 'config.json'}: {_first_line(error)}",
            "check model_type in config.json, or install a newer transformers",
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedDtype(f"{directory} holds a quantised checkpoint (quantization_config in config.json)")
    return config


def find_model_class(config: Any, directory: Path) -> Any:
    """The class named in `architectures`, else the base model of this configuration."""
    import transformers
    from transformers import AutoModel

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if found is not None and hasattr(found, "from_pretrained"):
            return found
    if config.architectures:
        raise UnsupportedCheckpoint(
            f"transformers has no class {config.architectures[0]} (architectures in {directory / 'config.json'})",
            "install a transformers version that has it",
        )
    try:
        return AutoModel._model_mapping[type(config)]
    except KeyError as error:
        raise UnsupportedCheckpoint(f"transformers has no base model for {type(config).__name__}") from error


def _resolve_dtype(config: Any, checkpoint: Checkpoint, dtype: str) -> tuple[Any, torch.dtype]:
    from transformers.modeling_utils import _get_dtype

    files = [str(file.path) for file in checkpoint.files]
    sharded: dict[str, Any] | None = {} if len(files) > 1 else None
    config, resolved = _get_dtype(dtype, files, copy.deepcopy(config), sharded, None, True)
    if resolved not in PARAMETER_DTYPES.values():
        raise UnsupportedDtype(f"{config.model_type} would be computed in {resolved}", "name one with --dtype")
    return config, resolved


def _build_on_meta(model_class: Any, config: Any, dtype: torch.dtype, extra: dict[str, Any]) -> Any:
    from transformers.monkey_patching import patch_output_recorders
    from transformers.utils.generic import ContextManagers

    with ContextManagers(model_class.get_init_context(dtype, False, False, False)):
        model = model_class(copy.deepcopy(config), **extra)
        patch_output_recorders(model)
    return model


def _read_generation_config(model: Any, directory: Path) -> None:
    if model.can_generate() and hasattr(model, "adjust_generation_fn"):
        model.adjust_generation_fn(
            None,
            from_auto_class=False,
            from_pipeline=None,
            pretrained_model_name_or_path=str(directory),
            cache_dir=None,
            force_download=False,
            proxies=None,
            local_files_only=True,
            token=None,
            revision="main",
            subfolder="",
            trust_remote_code=False,
        )


def _match_names(
    model: Any, checkpoint: Checkpoint, dtype: torch.dtype
) -> tuple[dict[str, Source], set[str], set[str]]:
    """Give every state-dict name its tensor, as `convert_and_load_state_dict_in_model` does.

    Returns the sources, the names that are missing, and the buffers that transformers makes up when they are.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        build_glob_alternation,
        dot_natural_key,
        rename_source_key,
    )
    from transformers.modeling_utils import LoadStateDictInfo

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    meta = model.state_dict()
    plan = model._get_dtype_plan(dtype)
    plan_pattern, plan_by_group, _ = build_glob_alternation(list(plan)) if plan else (None, {}, None)

    sources: dict[str, Source] = {}
    unexpected: set[str] = set()
    for key in sorted(checkpoint.tensors, key=dot_natural_key):
        name, merged_by = rename_source_key(key, renamings, converters, model.base_model_prefix, meta)
        if name not in meta and key in meta:
            name, merged_by = rename_source_key(key, [], [], model.base_model_prefix, meta)
        if name not in meta:
            unexpected.add(name)
            continue
        if merged_by is not None:
            raise UnsupportedCheckpoint(
                f"{key} would have to be merged or split while loading ({merged_by} in transformers' mapping)"
            )
        file, info = checkpoint.tensors[key]
        if tuple(info.shape) != tuple(meta[name].shape):
            raise CheckpointBroken(
                f"{key} has shape {list(info.shape)}, but the model built from config.json needs "
                f"{list(meta[name].shape)}",
                "check that config.json belongs to these weights",
            )
        wanted = dtype
        planned = plan_pattern.search(name) if plan_pattern is not None else None
        if planned is not None:
            wanted = plan[plan_by_group[planned.lastgroup]]
        elif meta[name].dtype != dtype:
            wanted = meta[name].dtype
        sources[name] = Source(file, info, wanted)

    info = LoadStateDictInfo(
        missing_keys=set(meta) - set(sources),
        unexpected_keys=unexpected,
        mismatched_keys=set(),
        conversion_errors={},
        error_msgs=[],
        skipped_pp_keys=set(),
    )
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # a tie that is absent from the file is refused below, by name
    try:
        model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    finally:
        logger.setLevel(level)
    untied = set(info.missing_keys)
    model._adjust_missing_and_unexpected_keys(info)
    # transformers forgives some missing names and fills them in: right for a buffer, random for a parameter.
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return sources, info.missing_keys | (untied & parameters), untied - info.missing_keys - parameters


def make_buffers_real(skeleton: Skeleton) -> None:
    """Give the buffers that no checkpoint holds (rotary tables, position ids) the values transformers gives them.

    In transformers 5 the model is always built on meta, and `_init_weights` of every model can fill its buffers in.
    Parameters are marked as initialised and stay on meta.
    """
    model = skeleton.model
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    for name in skeleton.buffers:
        model.get_buffer(name)._is_hf_initialized = True
    model._move_missing_keys_from_meta_to_device(skeleton.made_up, {"": "cpu"}, None, None)
    model._initialize_missing_keys(False)


def load_buffers(skeleton: Skeleton, tensors: dict[str, torch.Tensor]) -> None:
    """Put the checkpoint's own buffers (already read, by name) in place."""
    for name, tensor in tensors.items():
        owner_name, _, leaf = name.rpartition(".")
        owner: nn.Module = skeleton.model.get_submodule(owner_name)
        owner._buffers[leaf] = tensor.to(skeleton.buffers[name].dtype)


def _only_pooler(missing: set[str]) -> bool:
    return all("pooler." in name for name in missing)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
