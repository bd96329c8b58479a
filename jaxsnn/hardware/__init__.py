"""Devices that can find a network's spikes instead of the exact simulation."""

from jaxsnn.hardware.host import HostBackend as HostBackend
from jaxsnn.hardware.host import HostDevice as HostDevice
from jaxsnn.hardware.replay import Replay as Replay
from jaxsnn.hardware.simulated_chip import SimulatedChip as SimulatedChip
