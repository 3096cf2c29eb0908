"""Looking at what a model does: sample strips, the paper's figures, and a picture of the benchmarks."""
