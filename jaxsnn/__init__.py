"""Spiking layers for Flax Linen that compute with events and have exact gradients."""

from jaxsnn.spikes import Spikes as Spikes
from jaxsnn.spikes import concatenate as concatenate

__version__ = "0.1.0"
