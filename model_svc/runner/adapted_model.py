"""Makes a loaded model adaptable: chooses how the products of adapters are made, by where and how the model computes.

Decided from settings and device. Knows the order of these things; each is done elsewhere.
"""

import logging
from dataclasses import replace
from importlib import import_module
from typing import Any

from model_svc.model.adapter_places import Places, find_places
from model_svc.model.adapters import AdapterBank, AdapterLimits, AdapterProducts
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


def adapter_bytes(settings: EngineSettings) -> int:
    """What adapters may take on the device."""
    return settings.adapter_memory if settings.takes_adapters else 0


def products_of(settings: EngineSettings, model: LoadedModel, places: Places) -> AdapterProducts:
    """How the products of adapters are made."""
    if model.device.type == "cuda":
        triton: Any = import_module("model_svc.model.triton_adapters")  # where there is no GPU, Triton may not be there
        products: AdapterProducts = triton.TritonProducts(
            places, settings.adapter_slots, model.device, settings.max_adapter_rank
        )
        return products
    if all(isinstance(place.module, NativeLinear) for place in places.all):
        assert model.decoder is None or isinstance(model.decoder, NativeDecoder)
        return NativeProducts(places, settings.adapter_slots, model.decoder)
    return TorchProducts(places, settings.adapter_slots)


def with_adapters(settings: EngineSettings, model: LoadedModel) -> tuple[LoadedModel, AdapterBank | None]:
    """The model as it takes adapters, where settings ask for that, and what holds them. After the probe."""
    if not settings.takes_adapters:
        return model, None
    places = find_places(model)
    if not places.all:
        raise FailedPrecondition(
            f"adapters: {type(model.module).__name__} has no linear layers that an adapter can change",
            reason="ADAPTERS_UNSUPPORTED",
        )
    products = products_of(settings, model, places)
    bank = AdapterBank(places, products, AdapterLimits(settings.adapter_slots, settings.max_adapter_rank), model.dtype)
    log.info("adapters: %d linear layers, by %s", len(places.all), type(products).__name__)
    return replace(model, adapters=bank), bank
