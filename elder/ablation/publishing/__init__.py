"""Studies sent to Weights & Biases: one clean run per run, and a report and a workspace that compare them."""
