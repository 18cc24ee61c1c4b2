"""The replacement methods, one file each, the literal dict that names them, and the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import TypeAlias, TypeVar

from lowrank.compression.methods.biclustering import BiClustering
from lowrank.compression.methods.bits.low_rank_quantized import LowRankQuantized
from lowrank.compression.methods.channel_svd import ChannelSVD
from lowrank.compression.methods.cp import CP
from lowrank.compression.methods.depthwise_separable import DepthwiseSeparable
from lowrank.compression.methods.group_svd import GroupSVD
from lowrank.compression.methods.legonet import LegoNet
from lowrank.compression.methods.low_rank_sparse import LowRankSparse
from lowrank.compression.methods.monochromatic import Monochromatic
from lowrank.compression.methods.shared.base import OPTIONAL, Method
from lowrank.compression.methods.shared_input import SharedInputSVD
from lowrank.compression.methods.spatial_svd import SpatialSVD
from lowrank.compression.methods.tensor_train import TensorTrain
from lowrank.compression.methods.tucker2 import Tucker2
from lowrank.compression.methods.words.adaptive_embedding import AdaptiveEmbedding
from lowrank.errors import InputError

__all__ = [
    "CP",
    "METHODS",
    "RARE",
    "AdaptiveEmbedding",
    "BiClustering",
    "ChannelSVD",
    "DepthwiseSeparable",
    "GroupSVD",
    "LegoNet",
    "LowRankQuantized",
    "LowRankSparse",
    "Method",
    "MethodsLike",
    "Monochromatic",
    "SharedInputSVD",
    "SpatialSVD",
    "TensorTrain",
    "Tucker2",
    "check_class",
    "choose",
    "known",
    "register",
    "resolve",
]


METHODS: dict[str, type[Method]] = {
    "channel_svd": ChannelSVD,
    "spatial_svd": SpatialSVD,
    "tucker2": Tucker2,
    "cp": CP,
    "tensor_train": TensorTrain,
    "group_svd": GroupSVD,
    "depthwise_separable": DepthwiseSeparable,
    "low_rank_sparse": LowRankSparse,
    "low_rank_quantized": LowRankQuantized,
    "monochromatic": Monochromatic,
    "biclustering": BiClustering,
    "legonet": LegoNet,
    "shared_input_svd": SharedInputSVD,
    "adaptive_embedding": AdaptiveEmbedding,
}
"""Every method of the library by the name that plans and the command line use."""


RARE = frozenset(
    (
        "tensor_train",
        "group_svd",
        "low_rank_sparse",
        "low_rank_quantized",
        "monochromatic",
        "biclustering",
        "legonet",
    )
)
"""Methods that seldom win: tried where they are named, or with thorough effort."""


_REGISTERED: dict[str, type[Method]] = {}


_PLAN_KEYS = frozenset(
    ("kind", "shapes", "method", "dense", "tied", "cost", "cost_dense", "error", "int8", "behind")
)
"""What a layer's row in a plan says beside the settings of its method."""


MethodsLike: TypeAlias = "str | type[Method] | Iterable[str | type[Method]] | None"
"""What `methods=` takes: names, classes, or one of them."""


_EVERY = {n for n in (*Method.__annotations__, *vars(Method)) if not n.startswith("_")}
"""What a class of methods has."""

M = TypeVar("M", bound="type[Method]")


def register(cls: M) -> M:
    """Make a class of methods known by its name: to `methods=`, plans and checkpoints.

    A plan or a checkpoint that names it can be read wherever the class was registered
    before. The methods that are tried by default stay those of `METHODS`.

    Args:
        cls: a frozen dataclass that has all of `Method`; docs/add-a-method.md shows one.

    Returns:
        The class, so that this may stand above it as a decorator.

    Raises:
        InputError: the class lacks something, or another one has its name.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Halves(ChannelSVD):
        ...     name = "halves"
        >>> register(Halves).__name__, known()["halves"] is Halves
        ('Halves', True)
    """
    check_class(cls, "register")
    _REGISTERED.update({} if cls.name in METHODS else {cls.name: cls})
    return cls


def known() -> Mapping[str, type[Method]]:
    """Every method that has a name here: those of `METHODS`, then the registered ones."""
    return {**METHODS, **_REGISTERED}


def resolve(methods: MethodsLike = None, *, rare: bool = True) -> list[type[Method]]:
    """The classes that names and classes stand for, each once, in order.

    Args:
        methods: names that are `known`, classes (which need not be registered), or a single
            one of these; None for all of `METHODS`.
        rare: whether None stands for the methods of `RARE` too.

    Raises:
        InputError: an unknown name, a class that lacks something, or nothing at all.

    Example:
        >>> resolve("tucker2") == resolve(Tucker2) == resolve(["tucker2", Tucker2]) == [Tucker2]
        True
    """
    if methods is None:
        return [cls for name, cls in METHODS.items() if rare or name not in RARE]
    several = isinstance(methods, Iterable) and not isinstance(methods, str | type)
    given: list[object] = [*methods] if several else [methods]  # type: ignore[misc]
    if not given:
        raise InputError("methods", "there are none", choose())
    return list(dict.fromkeys(map(_class_of, given)))


def choose() -> str:
    """What a message about an unknown method says to do."""
    return f"choose among {', '.join(known())}, or pass a class of your own to lowrank.register"


def check_class(cls: object, where: str) -> None:
    """Refuse what is no class of methods, or has another one's name.

    Args:
        cls: what was given.
        where: the argument that the message names.

    Raises:
        InputError: says what is missing.
    """
    if not isinstance(cls, type):
        advice = f"pass the class {type(cls).__name__}" if is_dataclass(cls) else choose()
        raise InputError(where, f"{cls!r} is neither a name nor a class of methods", advice)
    if (lack := _lack(cls)) is not None:
        raise InputError(where, f"{cls.__name__} {lack}", "docs/add-a-method.md shows a whole one")
    name = cls.name  # type: ignore[attr-defined]
    other = known().get(name, cls)
    if other is not cls and (name in METHODS or not _is_redefined(other, cls)):
        problem = f"{cls.__name__} has the name {name!r} of {other.__module__}.{other.__qualname__}"
        raise InputError(where, problem, "give it another name")


def _class_of(given: object) -> type[Method]:
    if isinstance(given, str):
        if given not in known():
            raise InputError("methods", f"{given!r} is unknown", choose())
        return known()[given]
    check_class(given, "methods")
    return given  # type: ignore[return-value]


def _is_redefined(old: type, new: type) -> bool:
    """Whether a cell of a notebook or a module was run once more."""
    return (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def _lack(cls: type) -> str | None:
    """What a class lacks to be one of methods, or None."""
    missing = sorted(n for n in _EVERY if not hasattr(cls, n) or _is_placeholder(cls, n))
    if missing:
        return f"is no method: it has no {', '.join(missing)}"
    if not is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return "is no frozen dataclass"
    if not isinstance(cls.name, str) or not cls.name.isidentifier():  # type: ignore[attr-defined]
        return f"has the name {cls.name!r}, which is no word"  # type: ignore[attr-defined]
    own = {f.name for f in fields(cls)}
    if unknown := [n for n in cls.rank_names if n not in own]:  # type: ignore[attr-defined]
        return f"has no field {unknown[0]!r}, which its rank_names name"
    if taken := sorted(_PLAN_KEYS & own):
        return f"has a field {taken[0]!r}, which means something else in a plan"
    return None


def _is_placeholder(cls: type, name: str) -> bool:
    """Whether the class inherits the bare text of the protocol there."""
    bare = vars(Method).get(name)
    return name not in OPTIONAL and bare is not None and _plain(cls, name) is bare


def _plain(cls: type, name: str) -> object:
    return next((vars(c)[name] for c in cls.__mro__ if name in vars(c)), None)
