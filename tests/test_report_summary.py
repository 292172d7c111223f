from pathlib import Path

from distloop.report.summary import Fast, Learned, Sent, Summary

SUMMARY = Summary(
    Learned(109386, 0.0873, {"validation_loss": 0.0913, "accuracy": 0.9722}, "3f9a5c" * 10),
    Fast(seconds=4.12, samples_per_second=58452.3, steps=940, step_seconds=0.00412),
    Sent((616_000_000, 616_000_000, 617_000_000), messages=11280),
    Path("runs/20261103-101500"),
)


def test_a_summary_as_text() -> None:
    assert SUMMARY.text().splitlines() == [
        "learned  validation loss      0.0913",
        "         accuracy             0.9722",
        "         train loss           0.0873",
        "         parameters           109,386",
        "         weights              sha256 3f9a5c3f9a5c3f9a",
        "fast     time                 4.1 s",
        "         samples/s            58,452",
        "         steps                940",
        "         time per step (p50)  4.12 ms",
        "sent     per rank             616.00 MB to 617.00 MB",
        "         per rank and step    656.38 kB",
        "         all ranks            1.85 GB",
        "         messages             11,280",
        "saved    run folder           runs/20261103-101500",
    ]


def test_a_run_that_sent_nothing_and_took_no_step() -> None:
    summary = Summary(Learned(1, 0.5, {}), Fast(0.0, 0.0, 0, 0.0), Sent((0,), 0), Path("x"))
    assert "sent     per rank             0 B" in summary.text()
    assert "weights" not in summary.text()
