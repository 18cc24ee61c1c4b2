"""What an error in a table of words counts that several layers read.

The embedding's output feels an error as often as the word comes; the head's scores feel it at
every place, where the word is likely. With the rows' errors as the columns of D, features x words,

    embedding: tr(G D diag(c) D^T),   head: tr(M D diag(q) D^T),

with c how often each word comes, G the moment of the gradients at the embedding's output, q that
of the gradients at each word's score, whose expectation is p (1 - p) for class scores of
probabilities p, and M the second moment of what the head reads. Their sum is taken as one such
term: of G + sum(q) M, at the mean of c and q / sum(q), weighed by the traces of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowrank.compression.calibration.moments import Moments
from lowrank.compression.network.layers import LayerView


def of_table(readers: Sequence[LayerView], layers: Mapping[str, Moments]) -> Moments | None:
    """The moments of the first as if it alone read the table; None if none of them ran.

    Args:
        readers: embeddings of one table, and the head that reads it, if there is one.
        layers: name -> moments, of those that ran; a head's `G` holds the mean square of the
            gradient at each word, summed over places.

    Returns:
        C over words (1, words), G over features (1, features, features); without gradients the
        moments of the first.
    """
    ran = [(view, layers[view.name]) for view in readers if view.name in layers]
    if not ran:
        return None
    embeddings = [m for view, m in ran if view.spec.kind == "embedding"]
    first = layers.get(readers[0].name) or (embeddings[0] if embeddings else None)
    if first is None or not all(m.differentiated for _, m in ran):
        return None if first is None else replace(first, G=None, felt=None)
    unseen = embeddings[0].unseen_words if embeddings else 0 * first.C
    paths = [_path(view, m, readers[0].gain) for view, m in ran]
    sizes = [float(p.features.diagonal(dim1=1, dim2=2).sum()) for p in paths]
    total = sum(sizes)
    if total <= 0:
        return replace(first, G=paths[0].features, felt=None)
    words = sum((s / total * p.words for s, p in zip(sizes, paths, strict=True)), unseen)
    features = sum((p.features for p in paths[1:]), paths[0].features)
    n, seen = max(m.n for _, m in ran), max(m.seen for _, m in ran)
    none = torch.zeros_like(words)  # what was never seen is told already
    return replace(first, n=n, seen=seen, C=words, G=features, felt=None, lone=none)


@dataclass(frozen=True, eq=False)
class _Path:
    """How an error in a table reaches the output.

    Args:
        words: how much each counts, (1, words), of sum one.
        features: moment of what meets an error of a row, (1, features, features).
    """

    words: Tensor
    features: Tensor


def _path(view: LayerView, m: Moments, gain: float) -> _Path:
    if view.spec.kind == "embedding":
        if m.felt is not None:
            return _Path(m.C, (m.felt.mT @ m.felt).to(m.C))
        assert m.G is not None
        return _Path(m.C, m.G.to(m.C))
    assert m.G is not None
    read = m.metric(centred=False).formed.C
    read = read.diag_embed() if read.ndim == 2 else read
    felt = m.G.sum()
    words = m.G / felt.clamp_min(1e-300)
    return _Path(words, felt * read.to(m.G) / gain**2)
