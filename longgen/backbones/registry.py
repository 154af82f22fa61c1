"""Every family of models, and every backbone by name: longgen's own, and those that installed packages register.

Adding a family: `longgen docs contributing`. Adding a model to a family: a BackboneSpec in its file of facts.
A package registers a `Family` in its pyproject.toml, under the family's name:

    [project.entry-points."longgen.backbones"]
    my-family = "my_package.facts:FAMILY"
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

from longgen import plugins
from longgen.backbones import causal_wan, cogvideox, hunyuan, hunyuan15, ltx, ltx2, ltx_condition, skyreels, skyreels_df, wan
from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import BackboneSpec, Family
from longgen.errors import UsageError

GROUP = "longgen.backbones"
_MODULES = (wan, causal_wan, ltx, ltx_condition, cogvideox, hunyuan, hunyuan15, skyreels, skyreels_df, ltx2)
FAMILIES = {module.FAMILY.name: module.FAMILY for module in _MODULES}
SPECS = {  # longgen's own, the built-in ones first
    spec.name: spec
    for spec in sorted((spec for family in FAMILIES.values() for spec in family.specs), key=lambda spec: not spec.built_in)
}


@functools.cache
def plugin_families() -> dict[str, Family]:
    """The families of installed packages by name. Raises UsageError that names the package of a broken one."""
    families: dict[str, Family] = {}
    for name, plugin in plugins.registered(GROUP, "backbone family", FAMILIES).items():
        names = {*SPECS, *(spec.name for family in families.values() for spec in family.specs)}
        fault = functools.partial(_fault, name, names)
        families[name] = plugins.load(plugin.value, plugins.package(plugin), "backbone family", fault)
    return families


def _fault(name: str, taken: set[str], family: object) -> str | None:
    if not isinstance(family, Family):
        return "not a longgen.backbones.spec.Family"
    if {family.name, *(spec.family for spec in family.specs)} != {name}:
        return f"it is registered as '{name}', and its name or the family of a spec differs"
    return next((f"there is another backbone '{spec.name}'" for spec in family.specs if spec.name in taken), None)


def all_specs() -> dict[str, BackboneSpec]:
    """Every backbone by name, those of installed packages last. Raises as `plugin_families`."""
    return SPECS | {spec.name: spec for family in plugin_families().values() for spec in family.specs}


def is_backbone(name: str) -> bool:
    return name in SPECS or name in all_specs()


def family_of(spec: BackboneSpec) -> Family:
    """Raises UsageError where no installed package has the family of `spec`."""
    families = FAMILIES if spec.family in FAMILIES else FAMILIES | plugin_families()
    if spec.family not in families:
        raise UsageError(f"{spec.name} is of the family {spec.family}, which no installed package registers",
                         expected=", ".join(families), hint="install the package that it came from")  # fmt: skip
    return families[spec.family]


def versions(spec: BackboneSpec) -> dict[str, str]:
    """The version of the installed package that the family of `spec` comes from, by the package's name."""
    if spec.family in FAMILIES:
        return {}
    return plugins.versions(plugins.registered(GROUP, "backbone family", FAMILIES).get(spec.family))


def adapter_of(spec: BackboneSpec) -> Any:
    """The PipelineBackbone that drives `spec`. Importing it takes seconds, as diffusers does."""
    module, name = family_of(spec).adapter.split(":")
    return getattr(importlib.import_module(module), name)


def family_of_configs(configs: ModelConfigs) -> Family:
    """The family of a diffusers pipeline, by the classes in its model_index.json. Raises UsageError where it is none of them."""
    pipeline, transformer = configs.model_index["_class_name"], configs.model_index.get("transformer") or ()
    for families in (FAMILIES.values, lambda: plugin_families().values()):
        for family in sorted(families(), key=lambda family: family.marker is None):  # those that a transformer's class tells first
            if family.marker in transformer if family.marker else pipeline in (family.pipeline, *family.picture_pipelines):
                return family
    known = known_pipelines()
    raise UsageError(f"--backbone {configs.source} is a {pipeline}", expected=", ".join(known), hint="choose another model")


def known_pipelines() -> list[str]:
    """The classes of diffusers' pipelines that some family drives, as model_index.json names them."""
    families = (FAMILIES | plugin_families()).values()
    return [*dict.fromkeys(name for family in families for name in (family.pipeline, *family.picture_pipelines))]


def published_name(spec: BackboneSpec) -> str:
    """The name of the published model that `spec` is a variant of: the one before its colon, or that of the model of its shape."""
    base, published = spec.name.partition(":")[0], family_of(spec).specs
    if base in SPECS or any(known.name == base for known in published):
        return base
    same = like(spec, published)
    return base if same is None else same.name


def like(spec: BackboneSpec, published: Sequence[BackboneSpec]) -> BackboneSpec | None:
    """Which of the `published` models of its family has the shape of `spec`, and its size where there are several."""
    alike = [known for known in published if known.same_shape(spec) and known.experts == spec.experts]
    return min(alike, key=lambda known: known.size != spec.size, default=None)
