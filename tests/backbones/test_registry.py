"""The facts of each family agree with diffusers' classes and with the adapter that drives it, and stand in its own file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS as ALL_TRANSFORMER_BLOCK_IDENTIFIERS
from diffusers.hooks._helpers import TransformerBlockRegistry

import longgen
from longgen.backbones.registry import FAMILIES, SPECS, adapter_of, family_of, published_name
from longgen.backbones.settings import CACHE_FAULTS, CACHES
from longgen.backbones.spec import BackboneSpec
from longgen.pipelines.base import PipelineBackbone
from tests.models import published, small

PACKAGE = Path(longgen.__file__).parent


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_names_classes_that_exist(name: str) -> None:
    family = FAMILIES[name]
    assert family.name == name
    assert family.specs
    for spec in family.specs:
        assert (spec.family, SPECS[spec.name], family_of(spec)) == (name, spec, family)
        adapter = adapter_of(spec)
        assert issubclass(adapter, PipelineBackbone)
        assert adapter.kind is getattr(diffusers, family.pipeline)
    assert issubclass(getattr(diffusers, family.transformer), diffusers.ModelMixin)
    assert set(family.broken_caches) <= CACHE_FAULTS.keys()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_family_says_where_the_caches_of_blocks_do_not_work(spec: BackboneSpec) -> None:
    """diffusers skips blocks whose classes it has in a registry."""
    adapter_of(spec)  # registers those that diffusers lacks
    transformer = published.transformer(spec)
    blocks = {type(block) for name in ALL_TRANSFORMER_BLOCK_IDENTIFIERS for block in getattr(transformer, name, ())}
    assert blocks
    if not {*CACHES} & {*family_of(spec).broken_caches}:
        assert all(TransformerBlockRegistry.get(kind) for kind in blocks), "name first-block and mag in its broken_caches"


def test_every_family_has_a_small_pipeline_and_tests_of_its_own() -> None:
    """What shares Wan's classes has its tests beside Wan's."""
    own = {name for name, family in FAMILIES.items() if not all(spec.causal for spec in family.specs)}
    assert {*small.MODULES} == own
    assert [name for name in own if not Path(__file__).with_name(f"test_{name.replace('-', '_')}.py").is_file()] == []


def test_every_known_cache_fault_is_of_some_family() -> None:
    assert {name for family in FAMILIES.values() for name in family.broken_caches} | {*CACHES} == {*CACHE_FAULTS}


def test_the_built_in_ones_come_first() -> None:
    assert [spec.built_in for spec in SPECS.values()] == [True, True] + [False] * (len(SPECS) - 2)
    assert len(SPECS) == sum(len(family.specs) for family in FAMILIES.values())


@pytest.mark.parametrize("name", SPECS)
def test_a_published_model_is_known_by_its_name(name: str) -> None:
    assert published_name(SPECS[name]) == name


def test_facts_import_no_model_library() -> None:
    code = "import sys, longgen.backbones.find; print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_only_its_own_files_name_a_family() -> None:
    """Elsewhere a decision is a field of Family or BackboneSpec."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "backbones" not in path.relative_to(PACKAGE).parts:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            assert strings.isdisjoint(FAMILIES), path
