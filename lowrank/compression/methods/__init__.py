"""The replacement methods, one file each, and the literal dict that names them."""

from __future__ import annotations

from lowrank.compression.methods.base import Method
from lowrank.compression.methods.biclustering import BiClustering
from lowrank.compression.methods.channel_svd import ChannelSVD
from lowrank.compression.methods.cp import CP
from lowrank.compression.methods.depthwise_separable import DepthwiseSeparable
from lowrank.compression.methods.group_svd import GroupSVD
from lowrank.compression.methods.legonet import LegoNet
from lowrank.compression.methods.low_rank_sparse import LowRankSparse
from lowrank.compression.methods.monochromatic import Monochromatic
from lowrank.compression.methods.spatial_svd import SpatialSVD
from lowrank.compression.methods.tensor_train import TensorTrain
from lowrank.compression.methods.tucker2 import Tucker2

METHODS: dict[str, type[Method]] = {
    "channel_svd": ChannelSVD,
    "spatial_svd": SpatialSVD,
    "tucker2": Tucker2,
    "cp": CP,
    "tensor_train": TensorTrain,
    "group_svd": GroupSVD,
    "depthwise_separable": DepthwiseSeparable,
    "low_rank_sparse": LowRankSparse,
    "monochromatic": Monochromatic,
    "biclustering": BiClustering,
    "legonet": LegoNet,
}
"""Every method by the name that plans and the command line use."""

__all__ = [
    "CP",
    "METHODS",
    "BiClustering",
    "ChannelSVD",
    "DepthwiseSeparable",
    "GroupSVD",
    "LegoNet",
    "LowRankSparse",
    "Method",
    "Monochromatic",
    "SpatialSVD",
    "TensorTrain",
    "Tucker2",
]
