"""The settings of the published backbones and their sources agree: no setting without one, no difference without a reason."""

from __future__ import annotations

import re

import pytest

from longgen.backbones import sources
from longgen.backbones.registry import SPECS
from longgen.docs import generate

PUBLISHED = [name for name, spec in SPECS.items() if not spec.built_in]
OPTIONS = {"guidance": "guidance_scale", "flow shift": "flow_shift"}  # setting -> field of a sample, where there is an option


def test_every_published_backbone_has_its_sources() -> None:
    assert sorted(sources.SOURCES) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_setting_has_one(name: str) -> None:
    assert sources.SOURCES[name].keys() == sources.in_use(SPECS[name]).keys()
    for source in sources.SOURCES[name].values():
        repository, path = source.where.split(" ", 1)
        assert repository in sources.REPOSITORIES
        assert re.fullmatch(r"[\w./-]+\.(py|md|yaml)", path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_difference_has_a_reason_and_where_there_is_an_option_a_note(name: str) -> None:
    """A changed default, in a spec or at its source, fails here until both say so."""
    different = sources.differences(name)
    assert {key for key, source in sources.SOURCES[name].items() if source.why} == different.keys()
    advised = {OPTIONS[key]: source.value for key, (_, source) in different.items() if key in OPTIONS}
    assert dict(SPECS[name].advised) == advised
    assert bool(SPECS[name].advised_in) == bool(advised)


def test_the_page_shows_them() -> None:
    page = (generate.FOLDER / "models.md").read_text(encoding="utf-8")
    assert f"\n{generate.settings()}\n" in page
    assert "| guidance | 5 | 6 (here that of its script" in page
    assert "| boundary | 0.875 | the same | [wan2.2 wan/configs/wan_t2v_A14B.py](https://github.com/Wan-Video/Wan2.2/" in page
