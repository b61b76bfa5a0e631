"""What a model is known by on every board that has a copy: configuration, headers, sizes, and samples of the weights.

Unlike a checkpoint's digest it knows no path and no time. A copy that was fine-tuned has other samples. Reading all
would take minutes on a card; the checksums of units (`--verify`) see what the samples do not.
"""

from __future__ import annotations

import hashlib
import json
import os

from hermes_mp.errors import ReadFailed
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.host.retrying import retried

SAMPLES, SAMPLE_NBYTES = 64, 4096  # of each file: 64 small reads, 0.1 s on a card
UNSAID = ("_name_or_path", "transformers_version")  # of a configuration: not what the model is


def fingerprint(checkpoint: Checkpoint) -> str:
    """32 hexadecimal characters. Raises ReadFailed."""
    config = {name: value for name, value in checkpoint.config.items() if name not in UNSAID}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=16)
    placed = checkpoint.tensors.items()
    named = sorted((name, file, info.begin, info.nbytes, info.dtype) for name, (file, info) in placed)
    digest.update(json.dumps(named).encode())
    for file in checkpoint.files:
        digest.update(json.dumps([file.path.name, file.nbytes]).encode())
        try:
            fd = retried(os.open, file.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for number in range(SAMPLES):
                    at = (file.nbytes - SAMPLE_NBYTES) * number // (SAMPLES - 1)
                    digest.update(retried(os.pread, fd, SAMPLE_NBYTES, max(0, at)))
            finally:
                os.close(fd)
        except OSError as error:
            raise ReadFailed(f"{file.path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
