"""How a run of training is stopped, kept and accounted for."""
