"""Makes a loaded model adaptable: chooses how the products of adapters are made, by where and how the model computes.

Decided from settings and device. Knows the order of these things; each is done elsewhere.
"""

import logging
from dataclasses import replace

from model_svc.model.adapter_places import find_places
from model_svc.model.adapters import AdapterBank, AdapterProducts
from model_svc.model.loader import LoadedModel
from model_svc.model.native_adapters import NativeProducts
from model_svc.model.native_decoder import NativeDecoder
from model_svc.model.native_linear import NativeLinear
from model_svc.model.torch_adapters import TorchProducts
from model_svc.settings import EngineSettings
from tokenwire.errors import FailedPrecondition

log = logging.getLogger(__name__)


def check_adapters(settings: EngineSettings) -> None:
    """Raise FailedPrecondition where adapters are asked for with what excludes them. Cheap: before anything loads."""
    for name, excluded in (("tensor_parallel", settings.tensor_parallel > 1), ("compile", settings.compile == "on")):
        if settings.takes_adapters and excluded:
            raise FailedPrecondition(
                f"adapters: they cannot be served with {name}; leave adapters and adapter_folder empty, "
                f"or {name} as it is by default",
                reason="ADAPTERS_EXCLUDED",
            )


def with_adapters(settings: EngineSettings, model: LoadedModel) -> tuple[LoadedModel, AdapterBank | None]:
    """The model as it takes adapters, where settings ask for that, and what holds them. After the probe."""
    if not settings.takes_adapters:
        return model, None
    if model.device.type != "cpu":
        message = f"adapters: they are not served on {model.device} in this release, on a CPU alone"
        raise FailedPrecondition(message, reason="ADAPTERS_EXCLUDED")
    places = find_places(model)
    if not places.all:
        raise FailedPrecondition(
            f"adapters: {type(model.module).__name__} has no linear layers that an adapter can change",
            reason="ADAPTERS_UNSUPPORTED",
        )
    num_slots = settings.adapter_slots
    products: AdapterProducts
    if all(isinstance(place.module, NativeLinear) for place in places.all):
        assert model.decoder is None or isinstance(model.decoder, NativeDecoder)
        products = NativeProducts(places, num_slots, model.decoder)
    else:
        products = TorchProducts(places, num_slots)
    bank = AdapterBank(places, products, num_slots, model.dtype)
    log.info("adapters: %d linear layers, by %s", len(places.all), type(products).__name__)
    return replace(model, adapters=bank), bank
