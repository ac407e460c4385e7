"""Trained models by name: plain torch, no trainer."""

from elder.models.catalogue import Card, Catalogue, shipped
from elder.zoo.loading import load
from elder.zoo.model import TrainedModel

__all__ = ["Card", "Catalogue", "TrainedModel", "load", "shipped"]
