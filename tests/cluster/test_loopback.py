"""A cluster of this machine is reached over loopback alone, and is its own whatever RAY_ADDRESS names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import warm

pytest.importorskip("ray")
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
