"""What a video starts from beside its prompt: a first and a last picture, or an earlier video that it goes on from.

They are known by the SHA-256 of their files, which decides whether two runs are the same. A run keeps copies in its folder
(`keep`), so that it can be resumed when the files have moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longgen.past import Past
from longgen.pictures import Fit, Picture


@dataclass(frozen=True)
class Conditions:
    """image, last_image: the first and the last frame. past: what the video goes on from. fit: how pictures come to the video's
    size. join: whether the file that is written holds `past` too.
    """

    image: Picture | None = None
    last_image: Picture | None = None
    past: Past | None = None
    fit: Fit = "crop"
    join: bool = False

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.image, self.last_image, self.past))

    def as_dict(self) -> dict[str, Any] | None:
        """What decides the video, as JSON: hashes and not names. None where there is nothing."""
        if not self:
            return None
        given = {"image": self.image, "last_image": self.last_image, "continue": self.past}
        hashes = {name: part.sha256 for name, part in given.items() if part is not None}
        return hashes | {"fit": self.fit} | ({"join": True} if self.join else {})


NOTHING = Conditions()
