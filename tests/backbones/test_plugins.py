"""Backbones of installed packages: a fake distribution on sys.path registers a family by the entry point `longgen.backbones`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longgen.backbones import registry
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.find import find
from longgen.backbones.registry import SPECS, adapter_of, all_specs, family_of, published_name
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import WAN_1_3B
from longgen.errors import UsageError
from longgen.pipelines import random_weights
from tests import warm
from tests.models import published

FACTS = """
from dataclasses import replace
from longgen.backbones import wan

SPEC = replace(wan.TINY, name="{spec}", family="{family}", source="owner/{spec}", about="from outside")
FAMILY = replace(wan.FAMILY, name="{family}", specs=(SPEC,), pipeline="OutsidePipeline", adapter="{module}_adapter:Outside")
"""
ADAPTER = "from longgen.pipelines.wan import Wan\n\n\nclass Outside(Wan):\n    pass\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """install("package"): a distribution that registers the family "outside" with one backbone, "outside-1b"."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(package: str, facts: str = FACTS, family: str = "outside", spec: str = "outside-1b") -> Path:
        info = tmp_path / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[longgen.backbones]\n{family} = {package}_facts:FAMILY\n")
        (tmp_path / f"{package}_facts.py").write_text(facts.format(module=package, family=family, spec=spec))
        (tmp_path / f"{package}_adapter.py").write_text(ADAPTER)
        registry.plugin_families.cache_clear()
        return tmp_path

    yield make
    registry.plugin_families.cache_clear()
    for name in [name for name in sys.modules if name.endswith(("_facts", "_adapter"))]:
        del sys.modules[name]


def test_a_backbone_of_a_package_is_found_built_and_run(install: Callable[..., Path]) -> None:
    install("extra")
    spec = find("outside-1b")
    assert (spec.about, family_of(spec).name, published_name(spec)) == ("from outside", "outside", "outside-1b")
    assert registry.versions(spec) == {"extra": "1.2"}
    assert adapter_of(spec).__name__ == "Outside"
    assert [*all_specs()] == [*SPECS, "outside-1b"]
    assert type(random_weights.build(spec, ModelSettings("cpu", "fp32"))) is adapter_of(spec)


def test_a_folder_with_its_pipeline_class_is_recognised(install: Callable[..., Path], tmp_path: Path) -> None:
    install("extra")
    published.write_configs(WAN_1_3B, tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "OutsidePipeline"}))
    assert find(str(tmp_path)).about == "OutsidePipeline, read from its configs"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("", "AttributeError: module 'broken_facts' has no attribute 'FAMILY'"),
        ("FAMILY = 3\n", "not a longgen.backbones.spec.Family"),
        (FACTS.replace("{family}", "other"), "it is registered as 'outside', and its name or the family of a spec differs"),
        (FACTS.replace("{spec}", "wan2.1-1.3b"), "there is another backbone 'wan2.1-1.3b'"),
    ],
)
def test_a_broken_one_is_named_and_disturbs_nobody_else(install: Callable[..., Path], facts: str, reason: str) -> None:
    install("broken", facts)
    with pytest.raises(UsageError) as caught:
        find("outside-1b")
    assert caught.value.given == f"backbone family broken_facts:FAMILY of broken 1.2 cannot be used: {reason}"
    assert "uninstall broken 1.2" in caught.value.hint
    assert find("wan2.1-1.3b") is WAN_1_3B
    assert family_of(SELF_FORCING).name == "causal-wan"


def test_two_packages_with_one_name_are_refused(install: Callable[..., Path]) -> None:
    install("one")
    install("two")
    with pytest.raises(UsageError, match=r"two 1\.2 registers a backbone family 'outside', a name that one 1\.2 already uses"):
        find("outside-1b")


def test_a_package_cannot_take_a_name_of_longgen(install: Callable[..., Path]) -> None:
    install("three", family="wan")
    with pytest.raises(UsageError, match=r"three 1\.2 registers a backbone family 'wan', a name that longgen already uses"):
        all_specs()


def test_help_and_plans_do_not_import_a_broken_one(install: Callable[..., Path]) -> None:
    folder = install("broken", "raise SystemExit('imported')\n")
    for command in (["--help"], ["plan", "--preset", "direct", "--backbone", "tiny", "--frames", "81"]):
        code = f"import sys; sys.path.insert(0, {str(folder)!r}); from longgen.backbones import registry; "
        code += f"registry.plugin_families.cache_clear(); from longgen.cli import app; app({command!r})"
        done = warm.run(folder, [], code)
        assert done.returncode == 0, done.stderr
