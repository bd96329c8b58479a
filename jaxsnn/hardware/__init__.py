"""Devices that can find a network's spikes instead of the exact simulation."""

from jaxsnn.hardware.brainscales2 import BrainScaleS2 as BrainScaleS2
from jaxsnn.hardware.brainscales2 import Measurement as Measurement
from jaxsnn.hardware.errors import DeviceError as DeviceError
from jaxsnn.hardware.errors import DeviceTimeout as DeviceTimeout
from jaxsnn.hardware.errors import LinkError as LinkError
from jaxsnn.hardware.errors import typed_errors as typed_errors
from jaxsnn.hardware.host import Events as Events
from jaxsnn.hardware.host import HostBackend as HostBackend
from jaxsnn.hardware.host import HostPopulation as HostPopulation
from jaxsnn.hardware.host import HostProjection as HostProjection
from jaxsnn.hardware.host import Observed as Observed
from jaxsnn.hardware.limits import BRAINSCALES2 as BRAINSCALES2
from jaxsnn.hardware.limits import Limits as Limits
from jaxsnn.hardware.nest import Nest as Nest
from jaxsnn.hardware.replay import Replay as Replay
from jaxsnn.hardware.simulated_chip import SimulatedChip as SimulatedChip
