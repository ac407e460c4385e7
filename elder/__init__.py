"""Explicit learned regularizers, trained by deep equilibrium learning, for imaging inverse problems."""
