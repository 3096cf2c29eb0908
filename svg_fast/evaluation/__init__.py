"""Looking at what a model does: scores of its samples, the paper's analyses and figures, reports."""
