"""timm's image encoders by name, MedCLIP's ResNet-50 among them."""

import timm
from torch import nn

from data import hub
from utils import InputError

TIMM_NAMES = {  # what a name of MedCLIP's or SLIP's is in timm, and with which arguments
    "medclip_resnet": ("resnet50", {}),
    "vit_small_mocov3_patch16_224": ("vit_small_patch16_224", {"num_heads": 12}),
}


def timm_call(arch: str, image_size: int) -> tuple[str, dict]:
    """What timm calls an arch, and the arguments that it is made with. Raises InputError for a name that is none."""
    name, arguments = TIMM_NAMES.get(arch, (arch, {}))
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:4]
        hint = f"; timm has {', '.join(close)}" if close else ""
        raise InputError(f"--arch {arch}: neither medclip_vit, medclip_resnet nor a timm name{hint}")
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and config.input_size[-1] != image_size:
        arguments = {**arguments, "img_size": image_size}
    return name, arguments


def timm_encoder(arch: str, pretrained: bool, image_size: int) -> tuple[nn.Module, int]:
    """Any encoder of timm's, by its name there or one of TIMM_NAMES."""
    name, arguments = timm_call(arch, image_size)
    if pretrained:
        hub.reach()
    try:
        encoder = timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
    except Exception as error:  # timm and the hub raise a dozen kinds: no weights, offline, bad size
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--arch {arch}{' --pretrained timm' if pretrained else ''}: {first_line}") from None
    return encoder, getattr(encoder, "head_hidden_size", encoder.num_features)


def timm_mean_std(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = timm.get_pretrained_cfg(TIMM_NAMES.get(arch, (arch, {}))[0])
    return config.mean, config.std
