"""Looking at what a model does: sample strips and the paper's figures."""
