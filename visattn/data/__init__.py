"""Data sets as Lightning data modules, and the door by which pictures come in."""

from visattn.data.preprocess import Preprocess

__all__ = ["Preprocess"]
