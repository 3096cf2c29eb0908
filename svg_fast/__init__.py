"""Stochastic Video Generation (Denton & Fergus 2018), fast and exact."""

from . import backend, compat, kernels, nn, ops
from .models import SVG, SVGConfig, SVGOutput, preset

__version__ = "0.1.0"
__all__ = ["SVG", "SVGConfig", "SVGOutput", "backend", "compat", "from_pretrained", "nn", "ops", "preset"]

from_pretrained = SVG.from_pretrained

kernels.load()
