"""Plug: one adapter module at one site, by kind of site."""

from functools import partial

from torch import nn

from deltatune.core.site import (
    AttentionSite,
    InputSite,
    KeyValueAdapter,
    LayerSite,
    ParameterSite,
    SideSite,
    Site,
    SiteAdapter,
    SublayerSite,
)
from deltatune.engine.attention import plug_attention
from deltatune.engine.inputs import plug_input
from deltatune.engine.layers import Stacked, kind_of
from deltatune.engine.loss import LossSocket
from deltatune.engine.roster import Roster
from deltatune.engine.side import plug_side
from deltatune.engine.sockets import LayerSocket, ParameterSocket, socket
from deltatune.engine.sublayer import plug_sublayer


def plug(model: nn.Module, roster: Roster, site: Site, name: str, adapter: SiteAdapter) -> None:
    """Puts an adapter at its site."""
    match site:
        case LayerSite():
            _plug_layer(model, roster, site, name, adapter)
        case ParameterSite():
            for path in (site.path, *site.tied):
                _plug_tensor(model, roster, path, name, adapter)
        case SublayerSite():
            plug_sublayer(model, roster, site, name, adapter)
        case AttentionSite():
            assert isinstance(adapter, KeyValueAdapter)
            plug_attention(model, roster, site, name, adapter)
        case InputSite():
            plug_input(model, roster, site, name, adapter)
        case SideSite():
            plug_side(model, roster, site, name, adapter)


def plug_loss(model: nn.Module, roster: Roster, name: str) -> None:
    """Adds the method's penalty to the loss that the model itself computes."""
    socket(model, "loss", partial(LossSocket, roster)).plug(name, nn.Identity())


def owner(model: nn.Module, site: LayerSite) -> tuple[nn.Module, str]:
    """The module that holds a layer's weight, and the weight's name there."""
    if site.kind == "tensor":
        return split(model, site.path)
    return model.get_submodule(site.path), "weight"


def split(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Module and name of a parameter path."""
    module_path, _, name = path.rpartition(".")
    return model.get_submodule(module_path), name


def _plug_layer(model: nn.Module, roster: Roster, site: LayerSite, name: str, adapter: SiteAdapter) -> None:
    module, tensor_name = owner(model, site)
    kind = kind_of(site)
    if site.kind == "tensor":
        assert isinstance(kind, Stacked)
        _plug_tensor(model, roster, site.path, name, adapter, kind)
    elif isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        # torch's MultiheadAttention never calls it: it reads its weight
        _plug_tensor(model, roster, f"{site.path}.{tensor_name}", name, adapter, Stacked(site))
    else:
        socket(module, "layer", partial(LayerSocket, roster, kind)).plug(name, adapter)
        if type(model.get_submodule(site.path.rpartition(".")[0])) is nn.TransformerEncoderLayer:
            # torch's fused path would read the weights past the adapter; any hook turns it off
            roster.undo.append(module.register_forward_hook(_nothing).remove)


def _nothing(module: nn.Module, args: object, output: object) -> None:
    """A hook that changes nothing."""


def _plug_tensor(
    model: nn.Module, roster: Roster, path: str, name: str, adapter: SiteAdapter, kind: Stacked | None = None
) -> None:
    module, tensor_name = split(model, path)
    plugged: ParameterSocket = socket(module, "parameter", partial(ParameterSocket, roster), replaces=(tensor_name,))
    plugged.plug_tensor(tensor_name, name, adapter, kind)
