"""The model: encoders and decoders, recurrent nets, and SVG itself."""

from .config import PRESETS, SVGConfig, preset
from .svg import SVG, SVGOutput

__all__ = ["PRESETS", "SVG", "SVGConfig", "SVGOutput", "preset"]
