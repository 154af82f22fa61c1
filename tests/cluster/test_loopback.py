"""A cluster of this machine is reached over loopback alone, and is its own whatever RAY_ADDRESS names."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from longgen.backbones.wan import TINY
from longgen.cluster import pool
from longgen.errors import UsageError
from tests import warm

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")  # whose import is longgen's to make
CODE = """
import sys
from pathlib import Path
from longgen.backbones.wan import TINY
from longgen.cluster import pool
with pool.pool(pool.LOCAL, 1, TINY, "cpu", Path(sys.argv[1])) as made:
    print([node["NodeManagerAddress"] for node in made.ray.nodes()])  # Ray listens where this is
"""


def test_a_local_cluster_opens_no_port_beyond_loopback(tmp_path: Path) -> None:
    done = warm.run(Path.cwd(), [str(tmp_path)], CODE, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['127.0.0.1']"


def test_ray_that_was_imported_without_loopback_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(pool.LOOPBACK, "0")  # so that later tests of this process can start a cluster
    importlib.import_module("ray")
    monkeypatch.delenv(pool.LOOPBACK)
    with pytest.raises(UsageError, match="ray was imported before"), pool.pool(pool.LOCAL, 1, TINY, "cpu", tmp_path):
        pass
