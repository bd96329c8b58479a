"""Spiking layers as Flax Linen modules."""

from jaxsnn.layers.initializers import spread_normal as spread_normal
from jaxsnn.layers.lif import LIF as LIF
from jaxsnn.layers.network import Network as Network
