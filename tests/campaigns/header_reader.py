"""The process that parses headers in the header campaign: nothing but our reader, so that its memory is the reader's.

`python -m campaigns.header_reader DIRECTORY`: for every line that comes in it reads the checkpoint anew, and answers
with a line: `read` and a digest of what it found, `refused` and why, or `crashed` and how.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

from hermes_mp.errors import CheckpointBroken
from hermes_mp.host.checkpoint import find_checkpoint

SMALL_NBYTES = 1 << 18  # of files whose tensors' bytes are compared, too


def described(name: str, dtype: str, shape: tuple[int, ...] | list[int], data: bytes) -> bytes:
    """A tensor, for the digest."""
    return json.dumps([name, dtype, list(shape), len(data)]).encode() + data


def found_in(directory: Path) -> str:
    """A digest of all tensors by name, and of the metadata."""
    checkpoint = find_checkpoint(directory)
    digest = hashlib.sha256(json.dumps(checkpoint.metadata, sort_keys=True).encode())
    small = checkpoint.files[0].nbytes <= SMALL_NBYTES
    with open(checkpoint.files[0].path, "rb") as file:
        whole = memoryview(file.read() if small else b"")
    for name in sorted(checkpoint.tensors):
        _, info = checkpoint.tensors[name]
        digest.update(described(name, info.dtype, info.shape, bytes(whole[info.begin : info.end])))
    return digest.hexdigest()


def main() -> int:
    directory = Path(sys.argv[1])
    heavy = {"torch", "numpy", "safetensors"} & set(sys.modules)
    assert not heavy, heavy
    for _ in sys.stdin:
        started_s = time.perf_counter()
        try:
            verdict = f"read {found_in(directory)}"
        except CheckpointBroken as error:
            verdict = f"refused {str(error).partition(': ')[2]}"
        except Exception as error:
            verdict = f"crashed {error!r}"
        print(f"{time.perf_counter() - started_s:.4f} {verdict!a}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
