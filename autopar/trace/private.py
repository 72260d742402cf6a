"""The only file that touches underscore-private torch modules; tried on torch 2.11 and 2.13.

``torch.utils._pytree``: flattens nests of a user's inputs the way ``torch.export`` flattens
them, registered output classes of Hugging Face included. ``torch.utils.pytree`` does not
exist in these versions, and a walker of our own would disagree with the exporter on
such classes.
"""

from torch.utils._pytree import (
    tree_flatten,
    tree_flatten_with_path,
    tree_map,
    tree_unflatten,
)

__all__ = ["tree_flatten", "tree_flatten_with_path", "tree_map", "tree_unflatten"]
