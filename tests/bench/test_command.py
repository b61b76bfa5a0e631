"""`hermes-bench` as a user runs it: refusals, and real runs of tiny models that are measured, interrupted, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "hermes_mp.cli.bench"]
SMALL = ("--tokens", "8", "--new-tokens", "3", "--rounds", "2", "--loaders", "2")


def bench(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "the following arguments are required: --model"),
        (("--modes", "pipeload,fast"), "--modes takes of resident, sequential, pipeline, pipeload, not 'fast'"),
        (("--loaders", "0"), "--loaders takes whole numbers from 1 to 64, not '0'"),
        (("--memory", "1G"), "--memory takes sizes such as 700MiB, or none, not '1G'"),
        (("--disk", "slow"), "--disk takes as-is, MB/s, or none, not 'slow'"),
        (("--per-reader", "0x"), "--per-reader takes 2x, 6x or a number of MB/s, not '0x'"),
        (("--slots", "9", "--memory", "1GiB"), "--slots says how much memory pipeload has"),
        (("--rounds", "0"), "argument --rounds: a whole number of at least 1, not '0'"),
        (("--peers", "llama.cpp"), "--peers llama.cpp needs --llama-bench PATH and --gguf PATH"),
        (("--peers", "llama.cpp", "--llama-bench", "/none", "--gguf", "/none"), "--llama-bench /none does not exist"),
        (("--model", "gpt2-medium,a/gpt2"), "several models have one name: gpt2, gpt2-medium, a/gpt2"),
        (("--modes", ""), "nothing is run: --modes or --peers names nothing"),
        (("--loaders", ","), "nothing is run: --loaders names nothing"),
        (("--memory", ""), "nothing is run: --memory names nothing"),
        (("--cgroup", " , "), "nothing is run: --cgroup names nothing"),
        (("--disk", "none"), "nothing is run: --disk or --per-reader names nothing"),
        (("--resume",), "--resume needs the --report of the run to go on with"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words: tuple[str, ...], line: str) -> None:
    model = () if not words else ("--model", "gpt2")
    done = bench(*model, *words, code=2)
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_model_that_there_is_not_is_one_line(tmp_path: Path) -> None:
    assert "nothing is run: --model names nothing" in bench("--model", ",", code=2).stderr
    assert "there is no shape 'gpt9'" in bench("--model", "gpt9", code=10).stderr
    assert "'gpt9'" in bench("make-model", "gpt9", tmp_path / "new", code=10).stderr


def test_all_modes_of_a_decoder_with_pictures(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = bench("--model", models / "gpt2", *SMALL, "--memory", "none,1GiB,2GiB", "--report", out)
    rows = results(out)
    seen = [(row["backend"], row["loaders"], row["budget_nbytes"], row["test"]) for row in rows]
    assert len(seen) == len(set(seen)) == 2 * (3 + 3)
    assert {row["test"] for row in rows} == {"first token of 8, cold", "further token"}
    for row in rows:
        assert not row["failed"]
        assert row["rounds"] == 2
        assert row["seconds"] > 0
        assert row["raw_rate"] > 0
        assert row["weight_nbytes"] > 0
        assert row["peak_nbytes"] > row["weight_nbytes"]
        assert row["over_limit"] > 0
    streamed = [row for row in rows if row["backend"] == "pipeload" and row["budget_nbytes"] is None]
    whole = [row for row in rows if row["backend"] == "pipeline"]
    assert streamed[0]["slots"] == 3 < whole[0]["slots"]
    assert streamed[0]["weight_nbytes"] < whole[0]["weight_nbytes"]
    assert "everything is loaded by now" in done.stdout
    report = (out / "report.md").read_text()
    for picture in ("modes", "budget", "pipeline-1-timeline", "pipeload-2-1024-MiB-timeline"):
        path = out / f"gpt2-as-is-{picture}.png"
        assert path.stat().st_size > 10_000
        assert path.with_suffix(".svg").stat().st_size > 10_000
        assert path.name in report
    events = json.loads((out / "gpt2-as-is-pipeline-1.trace.json").read_text())
    reads = [event["ts"] for event in events if event["name"].startswith("read unit")]
    begun = next(event["ts"] for event in events if event["name"] == "pass")
    assert min(reads) >= begun, "cold: nothing is read before the pass begins"


def test_a_wrong_name_is_said_before_anything_is_measured(models: Path, tmp_path: Path) -> None:
    done = bench("--model", f"{models / 'mlm'},gpt9", *SMALL, "--report", tmp_path / "out", code=10)
    assert "there is no shape 'gpt9'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_error_in_the_middle_leaves_a_report_of_what_was_measured(models: Path, tmp_path: Path) -> None:
    """The second model cannot be made, as its folder is a file."""
    (tmp_path / "file").write_text("")
    out = tmp_path / "out"
    done = bench("--model", f"{models / 'mlm'},gpt2", "--models", tmp_path / "file", *SMALL, "--modes", "pipeload",
                 "--no-plots", "--report", out, code=2)  # fmt: skip
    assert "gpt2 cannot be made: " in done.stderr
    assert "Traceback" not in done.stderr
    assert {row["model"] for row in results(out)} == {"mlm"}
    assert "## mlm" in (out / "report.md").read_text()


def test_encoders_and_images(models: Path, tmp_path: Path) -> None:
    done = bench("--model", f"{models / 'mlm'},{models / 'vit'}", *SMALL, "--modes", "pipeload", "--no-plots",
                 "--report", tmp_path)  # fmt: skip
    assert {row["test"] for row in results(tmp_path)} == {
        "8 tokens, cold", "8 tokens, again", "image, cold", "image, again",
    }  # fmt: skip
    assert "## mlm, disk as it is" in done.stdout
    assert not list(tmp_path.glob("*.png"))


def test_a_mode_that_is_refused_is_a_row_that_says_so(models: Path, tmp_path: Path) -> None:
    done = bench("--model", models / "mlm", *SMALL, "--modes", "pipeload", "--memory", "50MiB,none", "--no-plots",
                 "--report", tmp_path)  # fmt: skip
    refused, *others = results(tmp_path)
    assert "the smallest budget" in refused["failed"]
    assert len(others) == 2
    assert not any(row["failed"] for row in others)
    assert "**failed**" in done.stdout


def test_an_interrupted_run_shows_what_it_has_and_is_gone_on_with(models: Path, tmp_path: Path) -> None:
    words = [str(word) for word in ("--model", models / "gpt2", *SMALL, "--no-plots", "--report", tmp_path)]
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "round 1 of 2, pipeline" in line:  # so two rows are measured
            process.send_signal(signal.SIGINT)
            break
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "sequential" in said
    before = results(tmp_path)
    assert {row["backend"] for row in before} >= {"resident", "sequential"}
    kept = (tmp_path / "measurements.jsonl").read_text()
    bench(*words, "--resume")
    assert (tmp_path / "measurements.jsonl").read_text().startswith(kept)
    assert {row["backend"] for row in results(tmp_path)} == {"resident", "sequential", "pipeline", "pipeload"}
    assert all(row["rounds"] == 2 for row in results(tmp_path))


def test_caps_are_left_out_and_said_without_root(models: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give its rights away")
    (tmp_path / "cgroup").mkdir()
    code = (
        "import sys; from pathlib import Path; from hermes_mp.bench import board; "
        "from hermes_mp.cli.bench import main; board.CGROUPS = Path(sys.argv.pop(1)); sys.exit(main())"
    )
    words = ["--model", str(models / "mlm"), *SMALL, "--modes", "pipeload", "--disk", "100", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cgroup"), *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "left out: no cgroup v1 blkio controller" in done.stdout
