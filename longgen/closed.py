"""Base of every file format and option set that longgen reads: immutable pydantic models that reject unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ClosedModel(BaseModel):
    """A frozen model without extra keys. A subclass that reads machine-written JSON adds `strict=True`: no type coercion."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
