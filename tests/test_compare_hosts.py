"""``compare`` where ranks are on two hosts with a link between them."""

from __future__ import annotations

import json
import sys

import pytest

from tests.hosts import Hosts, finish_on

MISSING = Hosts.missing()
pytestmark = [pytest.mark.skipif(MISSING is not None, reason=str(MISSING)), pytest.mark.timeout(240)]


def test_between_two_hosts(tmp_path):
    """What travels is what the formulas say; the trace has the second thread's transfers; the link is measured."""
    with Hosts(2, rate="200mbit") as hosts:
        done = finish_on(
            hosts, [1, 1], sys.executable, "-m", "distloop.compare", "--model", "mlp", "--model-args.hidden", "128",
            "--rounds", "2", "--steps", "2", "--strategies", "hierarchical,ring,zero,star,ring+bf16,auto",
            "--against", "ddp", "--collectives", "--largest", "16KiB", "--json", str(tmp_path / "out.json"),
            "--report", str(tmp_path / "report"), "--timeline", "--link", "1Gbit", timeout=200,
        )  # fmt: skip
    done.check()
    told = json.loads((tmp_path / "out.json").read_text())
    found = {one["name"]: one for one in told["contenders"]}
    assert set(found) == {"hierarchical", "ring", "zero", "star", "ring+bf16", "auto", "ddp", "alone"}
    assert told["setting"]["nodes"] == 2
    size = 4 * told["setting"]["parameters"]
    for name, share in {"hierarchical": 1, "ring": 1, "zero": 1, "star": 1, "ring+bf16": 0.5}.items():
        assert max(found[name]["sent_bytes"]) == pytest.approx(share * size, rel=1e-3), name
    assert all(one["agreement"]["holds"] for one in found.values() if one["agreement"] and not one["approximate"])
    assert sum(one["wrong_elements"] for one in told["collectives"]) == 0
    assert {one["name"] for one in told["yardsticks"]} == {"memory of a node", "link between two nodes, one way"}
    assert told["scaling"]["link"] == "1 a node, 1 Gbit/s between nodes"
    assert max(map(int, told["scaling"]["seconds"]["ring"])) == 4096
    trace = json.loads((tmp_path / "report" / "timeline-ring.json").read_text())["traceEvents"]
    transfers = {(event["pid"], event["tid"]) for event in trace if event.get("cat") == "transfer"}
    assert transfers == {(0, 1), (1, 1)}
