"""The model: encoders and decoders, recurrent nets, and SVG itself."""

from .config import PRESETS, SVGConfig, preset
from .generation import interpolate_latents
from .svg import SVG, SVGOutput

__all__ = ["PRESETS", "SVG", "SVGConfig", "SVGOutput", "interpolate_latents", "preset"]
