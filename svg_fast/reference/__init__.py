"""The definition of every op in plain PyTorch: any dtype, any device, no speed tricks that hide the equations.

These functions are the ops' default kernels (see `svg_fast.ops`) and what every faster kernel is judged against.
They run below autograd: each backward is written out beside its forward.
"""
