import io
import os
import re
import shutil
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from distloop.report import Bar, Fast, Learned, Plain, Plan, Sent, Silent, Summary, open_reporter

SUMMARY = Summary(
    Learned(1000, 0.5, {"validation_loss": 0.25}), Fast(1.0, 1e4, 100, 0.01), Sent((5, 5), 4), Path("runs/x")
)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

# A rank of a job, without MPI: only rank 0 sleeps, so that the live line is due.
JOB = """
import os, sys, time
from pathlib import Path
from distloop.report import Fast, Learned, Plan, Sent, Summary, open_reporter

rank = int(os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or 0)
with open_reporter(rank, *sys.argv[1:]) as reporter:
    reporter.start("2 ranks \u00b7 fake", Plan(2, 20))
    for step in range(1, 21):
        time.sleep(0.02 if rank == 0 else 0)
        reporter.step(1 + step // 11, step, step * 10, 0.5)
        if step % 10 == 0:
            reporter.epoch({"epoch": step // 10, "step": step, "train_loss": 0.5})
    reporter.finish(Summary(Learned(9, 0.5, {}), Fast(1.0, 2.0, 20, 0.1), Sent((1, 1), 2), Path("runs/x")))
"""


class Clock:
    """Time that passes when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Loss:
    """A loss that knows how often it was read."""

    reads = 0

    def __float__(self) -> float:
        self.reads += 1
        return 0.5


class Stream(io.StringIO):
    """A stream in memory that counts its writes."""

    encoding = "utf-8"
    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def test_the_bar_redraws_ten_times_a_second_at_most() -> None:
    clock, loss, stream = Clock(), Loss(), Stream()
    with Bar(stream, lambda: 120, clock) as bar:
        bar.start("a run", Plan(1, 10_000))
        for step in range(1, 5001):
            clock.now += 0.001
            bar.step(1, step, step * 4, loss)
        assert 45 <= loss.reads <= 50
    shown = ESCAPE.sub("", stream.getvalue())
    assert re.search(r"step +4,9\d\d/10,000  loss 0\.5000  4,000 samples/s  0:05 left", shown)


def test_the_bar_needs_no_thread() -> None:
    before = threading.active_count()
    with Bar(Stream(), lambda: 80) as bar:
        bar.start("a run", Plan(1, 10))
        assert threading.active_count() == before


def test_the_bar_follows_the_width() -> None:
    clock, stream, columns = Clock(), Stream(), [120, 120, 30, 30, 30]
    with Bar(stream, columns.pop, clock) as bar:
        bar.start("x", Plan(1, 1000))
        for step in (1, 2):
            clock.now += 1
            bar.step(1, step, step, 0.5)
        drawn = ESCAPE.sub("", stream.getvalue()).split("\r")
    assert len(drawn[-2].rstrip()) <= 30
    assert 60 < len(drawn[-1].rstrip()) <= 120


def test_lines_stay_above_the_bar_and_prints_too(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(Stream(), lambda: 80) as bar:
        bar.start("headline", Plan(2, 10))
        bar.epoch({"epoch": 1, "train_loss": 0.5})
        print("a [print] of the task")
        bar.say("a word")
        bar.finish(SUMMARY)
        text = ESCAPE.sub("", bar.stream.getvalue())  # type: ignore[attr-defined]
    for line in (
        "headline",
        "epoch 1/2  train loss 0.5000",
        "a [print] of the task",
        "a word",
        "run folder  runs/x",
    ):
        assert line in text
    for section in ("learned", "fast", "sent"):
        assert f"│ {section}" in text
    assert capsys.readouterr().out == ""


def test_the_cursor_is_visible_while_the_bar_is() -> None:
    stream = Stream()
    with Bar(stream, lambda: 80) as bar:
        bar.start("headline", Plan(2, 10))
        shown = stream.getvalue()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")

    def shown() -> str:
        stream = Stream()
        with Bar(stream, lambda: 80) as bar:
            bar.start("headline", Plan(2, 10))
            bar.finish(SUMMARY)
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert re.search(r"\x1b\[[0-9;]*36m", shown())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*(3|9)[0-7]m", shown())


def test_plain_lines_are_one_write_each() -> None:
    clock, loss, stream = Clock(), Loss(), Stream()
    with Plain(stream, log_every=50, clock=clock) as reporter:
        reporter.start("headline", Plan(1, 100))
        for step in range(1, 101):
            clock.now += 0.1
            reporter.step(1, step, step * 4, loss)
        reporter.epoch({"epoch": 1, "train_loss": 0.5})
        reporter.finish(SUMMARY)
    assert stream.getvalue().splitlines()[:4] == [
        "headline",
        "epoch 1/1  step  50/100  loss 0.5000  40 samples/s  0:05 left",
        "epoch 1/1  step 100/100  loss 0.5000  40 samples/s  0:00 left",
        "epoch 1/1  train loss 0.5000",
    ]
    assert (stream.writes, loss.reads) == (5, 2)


def test_plain_without_lines_of_steps() -> None:
    stream = Stream()
    reporter = Plain(stream)
    reporter.start("headline", Plan(1, 100))
    reporter.step(1, 1, 4, 0.5)
    assert stream.getvalue() == "headline\n"


@pytest.mark.parametrize("progress", ["plain", "bar"])
def test_a_stream_that_cannot_write_every_character(progress: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with open_reporter(0, progress, stream=stream) as reporter:  # type: ignore[arg-type]
        reporter.start("4 ranks · ring", Plan(1, 1))
        reporter.finish(SUMMARY)
        reporter.say("Müller")
    stream.flush()
    assert b"4 ranks ? ring" in stream.buffer.getvalue()


def test_who_reports() -> None:
    assert isinstance(open_reporter(1), Silent)
    assert isinstance(open_reporter(0, "off"), Silent)
    assert isinstance(open_reporter(0, "auto", stream=Stream()), Plain)
    assert isinstance(open_reporter(0, "bar", stream=Stream()), Bar)


def test_a_terminal_without_a_cursor_gets_lines() -> None:
    assert "\x1b" not in on_terminal(TERM="dumb")


def launcher() -> list[str]:
    found = shutil.which("mpirun") or shutil.which("mpirun", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("no mpirun on the PATH or beside python")
    return [found, "-n", "2"]


def environment(**changes: str) -> Mapping[str, str]:
    asked = {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "TERM": "xterm-256color",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    return {**os.environ, **asked, **changes}


def on_terminal(*command: str, columns: int = 100, **changes: str) -> str:
    """Run the job under ``command`` with its stdout on a new pseudo-terminal; return what that shows."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    line = [*command, sys.executable, "-c", JOB]
    job = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=environment(**changes))
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 65536):
            shown += piece
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    finally:
        os.close(master)
        status = job.wait(timeout=60)
    assert status == 0, shown.decode()
    return shown.decode()


def check_live(text: str) -> None:
    assert "\x1b[2K" in text, text
    bare = ESCAPE.sub("", text)
    assert re.search(r"━+─+  epoch 1/2  step +\d+/20  loss 0\.5000", bare), bare
    assert bare.count("2 ranks · fake") == 1
    assert "╭" in bare


def test_on_a_terminal() -> None:
    check_live(on_terminal())


def test_under_mpirun_on_a_terminal() -> None:
    check_live(on_terminal(*launcher()))


def test_under_mpirun_on_a_narrow_terminal() -> None:
    bare = ESCAPE.sub("", on_terminal(*launcher(), columns=62))
    assert "━" not in bare.split("╭")[0]
    assert re.search(r"epoch 1/2  step +\d+/20  loss 0\.5000", bare)


def test_under_mpirun_in_a_pipe() -> None:
    line = [*launcher(), sys.executable, "-c", JOB]
    job = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    lines = job.stdout.splitlines()
    assert lines[:3] == ["2 ranks · fake", "epoch 1/2  train loss 0.5000", "epoch 2/2  train loss 0.5000"]
    assert lines[3].split()[:2] == ["learned", "validation"]
    assert lines[4].split() == ["train", "loss", "0.5000"]
    assert "\x1b" not in job.stdout
