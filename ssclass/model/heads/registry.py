"""All heads by name. A new head is a subclass of `ssclass.model.heads.base.Head`, in a file of its own, added here."""

from __future__ import annotations

from ssclass.model.heads.base import Head
from ssclass.model.heads.bilinear import BilinearHead
from ssclass.model.heads.dense import T1Head, T20Head, T21Head
from ssclass.model.heads.kernel import RbfHead
from ssclass.model.heads.linear import LinearHead

HEADS: dict[str, type[Head]] = {
    head.name: head for head in (LinearHead, T1Head, T20Head, T21Head, RbfHead, BilinearHead)
}
AUTO = ("linear", "T1", "rbf", "bilinear")
"""What `auto` chooses among, simple to complex. T2.1 is `linear` fitted less exactly; T2.0 has a weight for each number
of the maps, too many to fit with hundreds of photos."""

OF_MANY = ("rbf", "bilinear")
"""What `auto` chooses among where more than `ALL_RACED` photos are trained on: both read them a block at a time."""
ALL_RACED = 20_000


def raced(photos: int) -> tuple[str, ...]:
    """What `auto` chooses among with so many training photos: `linear` and `T1` hold several copies of all of them."""
    return AUTO if photos <= ALL_RACED else OF_MANY


def needs_maps(name: str) -> bool:
    """Whether the head that params.yaml names, or one that `auto` may choose, needs feature maps."""
    return any(HEADS[head].maps for head in (AUTO if name == "auto" else (name,)))
