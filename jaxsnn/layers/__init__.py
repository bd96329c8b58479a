"""Spiking layers as Flax Linen modules."""

from jaxsnn.layers.delay import Delay as Delay
from jaxsnn.layers.grid import GridLI as GridLI
from jaxsnn.layers.grid import GridLIF as GridLIF
from jaxsnn.layers.grid import GridNetwork as GridNetwork
from jaxsnn.layers.grid import LICell as LICell
from jaxsnn.layers.grid import LIFCell as LIFCell
from jaxsnn.layers.grid import grid_twin as grid_twin
from jaxsnn.layers.initializers import spread_normal as spread_normal
from jaxsnn.layers.li import LI as LI
from jaxsnn.layers.lif import LIF as LIF
from jaxsnn.layers.network import Network as Network
from jaxsnn.layers.parameters import Bounded as Bounded
