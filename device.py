"""What a GPU does that a CPU does not, in one place: the callers read the same on every device.

Work for a GPU is queued, and the host goes on at once. It must not read a number, free a buffer that is still being
copied from, or copy from memory that can be paged out, or it waits.
"""

import torch


class Done:
    """Stands for an event where there is nothing to wait for."""

    def synchronize(self) -> None:
        pass


def queued(device: torch.device) -> bool:
    """Whether work for the device is queued while the host goes on."""
    return device.type != "cpu"


def mark():
    """A handle on all that is queued for this process's device by now: its `synchronize()` waits until it is done."""
    if not torch.cuda.is_initialized():
        return Done()
    event = torch.cuda.Event()
    event.record()
    return event


def to_host(x: torch.Tensor) -> tuple:
    """A copy of `x` on the host, not to be read before the handle's `synchronize()` -> the copy and the handle."""
    return x.to("cpu", non_blocking=True), mark()


def host_buffer(x: torch.Tensor) -> torch.Tensor:
    """Memory on the host for a copy of `x`, with its strides, to which a copy can be queued."""
    return torch.empty_like(x, device="cpu", pin_memory=queued(x.device))


def half_precision(device: torch.device) -> torch.dtype | None:
    """The type in which the device multiplies matrices fastest; None if that is float32."""
    if device.type == "cpu":
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if has_bf16 else None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def name(device: torch.device) -> str:
    """The device in words, for a run's records."""
    return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
