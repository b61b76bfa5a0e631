"""What the small commands print: their answer on standard output, one line of an error on standard error."""

from __future__ import annotations

import io
import json
import os
import sys

from hermes_mp import errors
from hermes_mp.errors import HermesError, WriteFailed


def print_out(text: str) -> None:
    """Raises WriteFailed where it cannot be written; a reader that goes away (`| head`) is no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may be no UTF-8
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise WriteFailed(f"standard output cannot be written: {error.strerror}") from error


def refused(program: str, schema: int, reason: HermesError | OSError, as_json: bool) -> int:
    """Say the error; its exit code."""
    error = errors.refused(reason) if isinstance(reason, OSError) else reason
    print(f"{program}: {error.line()}", file=sys.stderr)
    if as_json:
        print(json.dumps({"schema": schema, "error": {"exit_code": error.exit_code, "line": error.line()}}))
    return error.exit_code
