"""From a user's model to the graph of its training step."""

from autopar.trace.trace import trace

__all__ = ["trace"]
