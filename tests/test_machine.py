"""Which backbones fit a machine, and what its caches hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from longgen import backbone_facts, machine
from longgen.backbones.registry import SPECS
from longgen.machine import Memory

GB = 10**9


@pytest.mark.parametrize(
    ("name", "memory", "offloads"),
    [
        ("wan2.1-1.3b", Memory(128 * GB, 100 * GB, 80 * GB), ["none", "none"]),
        ("wan2.1-14b", Memory(128 * GB, 100 * GB, 48 * GB), ["none", "model"]),
        ("wan2.1-14b", Memory(128 * GB, 100 * GB, 40 * GB), ["model", "group"]),
        ("wan2.1-14b", Memory(16 * GB, 10 * GB, 40 * GB), [None, None]),  # offloaded weights would not fit the host
        ("wan2.1-14b", Memory(128 * GB, 100 * GB, 2 * GB), [None, None]),
        ("tiny", Memory(16 * GB, GB, 0), ["none", "none"]),
        ("wan2.1-1.3b", Memory(64 * GB, 35 * GB, 0), ["none", None]),  # a CPU has nothing to offload to
    ],
)
def test_the_cheapest_offload_that_fits(name: str, memory: Memory, offloads: list[str | None]) -> None:
    spec = SPECS[name]
    rows = machine.fits(spec, memory)
    assert [row["frames"] for row in rows] == [spec.native_px, backbone_facts.LONG_PX]
    assert [row["offload"] for row in rows] == offloads


def test_a_cache_counts_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "longgen" / "probes" / "a"
    folder.mkdir(parents=True)
    (folder / "probe.json").write_bytes(b"1234")
    (folder / "link").symlink_to(folder / "probe.json")
    rows = {row["name"]: row for row in machine.caches()}
    assert (rows["probes"]["bytes"], rows["magcache"]["bytes"]) == (4, 0)
    assert rows["probes"]["clear"].endswith(str(tmp_path / "longgen" / "probes"))
