"""How a run of training is stopped, averaged, kept and accounted for."""
