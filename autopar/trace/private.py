"""The only file that touches underscore-private torch modules; tried on torch 2.11 and 2.13.

``torch.utils._pytree``: flattens nests of a user's inputs the way ``torch.export`` flattens
them, registered output classes of Hugging Face included. ``torch.utils.pytree`` does not
exist in these versions, and a walker of our own would disagree with the exporter on
such classes.

``torch.utils._python_dispatch.TorchDispatchMode``: the one way to see every op that runs,
autograd's included; PyTorch documents it under this name and has no public one.
"""

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import (
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_unflatten,
)

__all__ = [
    "TorchDispatchMode",
    "tree_flatten",
    "tree_flatten_with_path",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
]
