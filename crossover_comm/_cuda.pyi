"""The CUDA part of the extension. Absent in a build without nvcc: import it where a GPU is asked
for, never at the top of a module."""

from crossover_comm._C import Device, Nccl, TransportLayer

architectures: str
"""What machine code was compiled for, as CMake names it: "80-real;90-real;90-virtual"."""

class CudaDevice(Device):
    """One GPU and the streams of ours on it."""

    def __init__(self, ordinal: int) -> None: ...
    @property
    def ordinal(self) -> int: ...

def device_count() -> int:
    """GPUs that CUDA shows. DeviceError says why it shows none."""

def check_pack(device: CudaDevice) -> None:
    """Packs known values. DeviceError says what is wrong; so do the next two."""

def check_mix(device: CudaDevice) -> None:
    """Mixes known values."""

def check_self_exchange(device: CudaDevice, nccl: Nccl) -> None:
    """Sends a message through NCCL to this rank itself."""

def nccl_layer(
    *,
    nccl: Nccl,
    device: CudaDevice,
    rank: int,
    size: int,
    unique_id: bytes,
    timeout_s: float,
    stall_timeout_s: float,
    max_ctas: int,
    host_ready: bool,
) -> TransportLayer:
    """Moves device memory by NCCL; the transport below carries agreements and signs of life.

    `unique_id` is the same on all ranks. `max_ctas`: blocks of a kernel. `host_ready`: agree with
    the peers before each launch.
    """
