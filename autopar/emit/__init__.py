"""From a plan to a stand-alone training program."""

from autopar.emit.program import program_text, write_program

__all__ = ["program_text", "write_program"]
