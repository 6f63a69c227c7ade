"""Public architectures as small as they get: random weights, a few small samples, a loss.

Each function returns a :class:`Case`. The classes are those of torch, torchvision, timm and
transformers, with fewer and narrower layers where their arguments allow it; whatever they do in
their forward passes is untouched. The decorator says which of the default measures a report has to
hold at least, by what the measures need and before any run:

* ``EVERY``: floating-point inputs, one row of outputs a sample, a loss with a name.
* ``TOKENS``: the inputs are integers, in which nothing can be differentiated.
* ``POSITIONS``: the outputs have further axes, positions or pixels. What is defined for one row of
  outputs a sample may be left out; the parameters' curvature may not.
* ``FIRST_ORDER``: an operation has no second derivative, so that only measures of first
  derivatives, or of layers behind that operation, can be asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NETWORK_INPUT = frozenset(
    {
        "maximum_local_sensitivity",
        "normalized_maximum_local_sensitivity",
        "input_invariant_local_sensitivity",
        "log_volume",
        "local_dimension",
    }
)
FIRST_ORDER = frozenset(
    {
        "layer_gauss_newton_traces",
        "gauss_newton_trace",
        "information_geometric_sharpness",
        "fisher_rao_norm",
        "mean_loss",
        "mean_exponential_loss",
        "parameter_norm",
    }
)
TOKENS = FIRST_ORDER | {
    "renyi_sharpness",
    "relative_flatness",
    "adaptive_weight_sharpness",
    "network_maximum_local_sensitivity",
    "network_log_volume",
}
EVERY = TOKENS | NETWORK_INPUT
POSITIONS = frozenset(
    {"mean_loss", "parameter_norm", "renyi_sharpness", "adaptive_weight_sharpness"}
)

CLASSES = 3
VOCABULARY = 31


@dataclass(frozen=True)
class Case:
    """What ``measure`` is given, and what tells its values apart from wrong ones.

    Attributes
    ----------
    model : nn.Module
        In float32, in evaluation mode.
    data : pair
        Inputs, a tensor or several of them, and targets.
    loss : str, nn.Module or callable
        As a user would pass it.
    forward : callable, optional
        (model, inputs) → outputs, where the model is not called with the inputs alone.
    outputs : callable
        Result of the model → the tensor that the loss takes.
    mean_loss : callable
        (outputs, targets) → scalar, what the loss means, in PyTorch's own words.
    """

    model: nn.Module
    data: tuple[Any, Tensor]
    loss: Any = "cross_entropy"
    forward: Callable[[nn.Module, Any], Any] | None = None
    outputs: Callable[[Any], Tensor] = lambda result: result
    mean_loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy


@dataclass(frozen=True)
class Architecture:
    """A case by name, with what its report holds at least.

    Attributes
    ----------
    build : callable
        → Case, the same every time.
    present : frozenset of str
        Default measures that the report holds at least.
    twice_differentiable : bool
        Whether every operation has a second derivative.
    single_precision_inside : bool
        Whether the model itself rounds to float32 on its way, also when its weights are float64.
    """

    name: str
    build: Callable[[], Case]
    present: frozenset[str]
    twice_differentiable: bool = True
    single_precision_inside: bool = False

    @property
    def round_off(self) -> float:
        """Relative error that two ways through the model may leave between them."""
        return 1e-5 if self.single_precision_inside else 1e-8


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(present: frozenset[str], **options: Any) -> Callable:
    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        def seeded() -> Case:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                case = build()
            case.model.eval()
            return case

        ARCHITECTURES[build.__name__] = Architecture(build.__name__, seeded, present, **options)
        return build

    return register


def _labels(n: int = 4, classes: int = CLASSES) -> Tensor:
    return torch.arange(n) % classes


def _settled(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Give batch normalisations the statistics of the samples, as training would."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def _stirred(model: nn.Module) -> nn.Module:
    """Move parameters that start at or near zero, as training would.

    Else a last layer, a layer scale or a last normalisation at zero hides all that is before it.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.3)
    return model


def _images(model: nn.Module, size: int = 32) -> Case:
    inputs = torch.randn(4, 3, size, size)
    return Case(_settled(_stirred(model), inputs), (inputs, _labels()))


def _untrained_images(model: nn.Module, size: int = 32) -> Case:
    """Leave the weights as their classes make them, with Hessian blocks that are zero or tiny."""
    inputs = torch.randn(4, 3, size, size)
    return Case(_settled(model, inputs), (inputs, _labels()))


def _emptied(build: Callable[[], nn.Module], **replacements: nn.Module) -> nn.Module:
    """Build without memory, replace large parts, then initialize what is left."""
    with torch.device("meta"):
        model = build()
    for name, part in replacements.items():
        setattr(model, name, part)
    model.to_empty(device="cpu")
    for part in model.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return model


# --- torchvision


@architecture(EVERY)
def torchvision_alexnet() -> Case:
    from torchvision.models import AlexNet

    head = nn.Sequential(nn.Dropout(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    model = _emptied(AlexNet, avgpool=nn.AdaptiveAvgPool2d(1), classifier=head)
    model.features = model.features[:6]
    return _images(model, 64)


@architecture(EVERY)
def torchvision_vgg11_bn() -> Case:
    from torchvision.models.vgg import VGG, make_layers

    layers = [8, "M", 16, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"]
    head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, CLASSES))
    model = _emptied(
        lambda: VGG(make_layers(layers, batch_norm=True), init_weights=False),
        avgpool=nn.AdaptiveAvgPool2d(1),
        classifier=head,
    )
    return _images(model)


def _two_stages(model: nn.Module, width: int) -> nn.Module:
    """Cut a ResNet after its first strided stage: the widths of the others are fixed and large."""
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(width, CLASSES)
    return model


@architecture(EVERY)
def torchvision_resnet_basic() -> Case:
    from torchvision.models.resnet import BasicBlock, ResNet

    return _images(_two_stages(ResNet(BasicBlock, [1, 1, 1, 1]), 128))


@architecture(EVERY)
def torchvision_resnext() -> Case:
    from torchvision.models.resnet import Bottleneck, ResNet

    model = ResNet(Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=2)
    return _images(_two_stages(model, 512))


@architecture(EVERY)
def torchvision_densenet() -> Case:
    from torchvision.models import DenseNet

    return _images(DenseNet(4, (2, 2, 2, 2), 8, bn_size=2, num_classes=CLASSES))


@architecture(EVERY)
def torchvision_mobilenet_v2() -> Case:
    from torchvision.models import MobileNetV2

    blocks = [[1, 16, 1, 1], [3, 24, 2, 2], [3, 32, 1, 2]]
    return _images(MobileNetV2(CLASSES, 0.25, blocks))


@architecture(EVERY, twice_differentiable=False)
def torchvision_mobilenet_v3() -> Case:
    from torchvision.models import MobileNetV3
    from torchvision.models.mobilenetv3 import InvertedResidualConfig

    blocks = [
        InvertedResidualConfig(8, 3, 8, 8, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(8, 3, 24, 8, False, "RE", 1, 1, 1.0),
        InvertedResidualConfig(8, 5, 24, 16, True, "HS", 2, 1, 1.0),
    ]
    return _images(MobileNetV3(blocks, 16, CLASSES))


@architecture(EVERY)
def torchvision_shufflenet_v2() -> Case:
    from torchvision.models import ShuffleNetV2

    return _images(ShuffleNetV2([2, 1, 1], [8, 16, 16, 32, 32], CLASSES))


@architecture(EVERY)
def torchvision_squeezenet() -> Case:
    from torchvision.models import SqueezeNet

    model = SqueezeNet("1_1", CLASSES)
    model.features = model.features[:6]
    model.classifier[1] = nn.Conv2d(128, CLASSES, 1)
    return _images(model)


@architecture(EVERY)
def torchvision_mnasnet() -> Case:
    from torchvision.models import MNASNet

    model = MNASNet(0.1, CLASSES)
    # As other classes do: its own large weights here saturate the softmax, without any curvature.
    model.classifier[1].reset_parameters()
    return _images(model)


@architecture(EVERY)
def torchvision_efficientnet() -> Case:
    from torchvision.models import EfficientNet
    from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig

    blocks = [
        FusedMBConvConfig(2, 3, 1, 8, 8, 1),
        MBConvConfig(4, 3, 2, 8, 16, 1),
        MBConvConfig(4, 5, 2, 16, 16, 1),
    ]
    return _images(EfficientNet(blocks, 0.2, num_classes=CLASSES, last_channel=32))


@architecture(EVERY)
def torchvision_regnet_y() -> Case:
    from torchvision.models import RegNet
    from torchvision.models.regnet import BlockParams

    return _images(
        RegNet(BlockParams([1, 1], [8, 16], [4, 8], [1.0, 1.0], [2, 2], 0.25), CLASSES, 8)
    )


@architecture(EVERY)
def torchvision_convnext() -> Case:
    from torchvision.models import ConvNeXt
    from torchvision.models.convnext import CNBlockConfig

    # As many channels as rows after the stem: what hides a wrong axis. Its layer scales are 1e-6.
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return _untrained_images(ConvNeXt(blocks, num_classes=CLASSES))


@architecture(EVERY)
def torchvision_vit() -> Case:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES)
    return _images(model)


@architecture(EVERY)
def torchvision_swin() -> Case:
    from torchvision.models import SwinTransformer

    return _images(SwinTransformer([4, 4], 8, [2, 1], [2, 2], [4, 4], num_classes=CLASSES))


@architecture(EVERY)
def torchvision_maxvit() -> Case:
    from torchvision.models import MaxVit

    return _images(MaxVit((32, 32), 8, 4, [8, 8], [1, 1], 4, 0.0, num_classes=CLASSES))


def _backbone(*names: str) -> nn.Module:
    """Return convolutions whose inner results segmentation heads take by name."""
    from torchvision.models._utils import IntermediateLayerGetter

    def block(inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    trunk = nn.Sequential(block(3, 8), block(8, 8))
    return IntermediateLayerGetter(trunk, dict(zip(("0", "1")[-len(names) :], names, strict=True)))


def _pixels(model: nn.Module, **options: Any) -> Case:
    inputs = torch.randn(3, 3, 16, 16)
    targets = torch.arange(3 * 16 * 16).reshape(3, 16, 16) % CLASSES
    data = (inputs, targets)
    return Case(_settled(model, inputs), data, nn.CrossEntropyLoss(), **options)


_OUT: dict[str, Any] = {"outputs": lambda result: result["out"]}


@architecture(POSITIONS)
def torchvision_fcn() -> Case:
    from torchvision.models.segmentation import FCN
    from torchvision.models.segmentation.fcn import FCNHead

    # The loss takes nothing of the auxiliary head: parameters that are unused.
    model = FCN(_backbone("aux", "out"), FCNHead(8, CLASSES), FCNHead(8, CLASSES))
    return _pixels(model, **_OUT)


@architecture(POSITIONS)
def torchvision_deeplab_v3() -> Case:
    from torchvision.models.segmentation import DeepLabV3
    from torchvision.models.segmentation.deeplabv3 import ASPP

    head = nn.Sequential(ASPP(8, (1, 2), 8), nn.Conv2d(8, CLASSES, 1))
    return _pixels(DeepLabV3(_backbone("out"), head), **_OUT)


@architecture(POSITIONS)
def torchvision_lraspp() -> Case:
    from torchvision.models.segmentation import LRASPP

    return _pixels(LRASPP(_backbone("low", "high"), 8, 8, CLASSES, 8), **_OUT)


# --- torch.nn


class SequenceClassifier(nn.Module):
    """A recurrent network over time and a layer on its last state."""

    def __init__(
        self, recurrent: nn.Module, width: int, embedding: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.embedding = nn.Identity() if embedding is None else embedding
        self.recurrent = recurrent
        self.head = nn.Linear(width, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(inputs))[0][:, -1])


class TimeFirst(nn.Module):
    """The same with time as the first axis inside."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(4, 8), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.recurrent(inputs.transpose(0, 1))[0][-1])


class PooledEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.encoder(inputs).mean(1))


class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.hidden = nn.EmbeddingBag(VOCABULARY, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.hidden(self.bag(inputs)).relu())


class UNet(nn.Module):
    """One level: down, up by a transposed convolution, and the skip joined to it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.leave = nn.Conv2d(8, CLASSES, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        skip = self.enter(inputs).relu()
        return self.leave(torch.cat([skip, self.up(self.down(skip).relu()).relu()], 1))


class MixtureOfExperts(nn.Module):
    """Each sample goes to its best expert alone."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.head = nn.Linear(6, 3), nn.Linear(6, CLASSES)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        weight, chosen = self.route(inputs).softmax(-1).max(-1)
        mixed = torch.zeros_like(inputs)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            mixed = mixed.index_add(0, rows, expert(inputs[rows]).relu() * weight[rows, None])
        return self.head(mixed)


class GraphNetwork(nn.Module):
    """Two graph convolutions (Kipf and Welling 2017) on dense adjacencies, and the nodes' mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        loops = adjacency + torch.eye(adjacency.shape[-1]).to(adjacency)
        scale = loops.sum(-1).rsqrt()
        spread = scale.unsqueeze(-1) * loops * scale.unsqueeze(-2)
        hidden = (spread @ self.first(features)).relu()
        return self.head((spread @ self.second(hidden)).relu().mean(1))


@architecture(EVERY)
def torch_lstm() -> Case:
    model = SequenceClassifier(nn.LSTM(4, 8, batch_first=True), 8)
    return Case(model, (torch.randn(5, 6, 4), _labels(5)))


@architecture(TOKENS)
def torch_lstm_bidirectional_on_tokens() -> Case:
    recurrent = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
    model = SequenceClassifier(recurrent, 12, nn.Embedding(VOCABULARY, 8))
    return Case(model, (torch.randint(VOCABULARY, (5, 6)), _labels(5)))


@architecture(EVERY)
def torch_gru_time_first() -> Case:
    return Case(TimeFirst(), (torch.randn(5, 6, 4), _labels(5)))


@architecture(EVERY)
def torch_transformer_encoder() -> Case:
    return Case(PooledEncoder(), (torch.randn(4, 5, 8), _labels()))


@architecture(FIRST_ORDER, twice_differentiable=False)
def torch_embedding_bag() -> Case:
    return Case(BagOfWords(), (torch.randint(VOCABULARY, (6, 5)), _labels(6)))


@architecture(EVERY)
def torch_autoencoder() -> Case:
    widths = (nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4), nn.Linear(4, 8), nn.Tanh())
    inputs = torch.randn(6, 12)
    model = nn.Sequential(*widths, nn.Linear(8, 12))
    return Case(model, (inputs, inputs), nn.MSELoss(), mean_loss=functional.mse_loss)


@architecture(POSITIONS)
def torch_unet() -> Case:
    return _pixels(UNet())


@architecture(EVERY)
def torch_mixture_of_experts() -> Case:
    return Case(MixtureOfExperts(), (torch.randn(8, 6), _labels(8)))


@architecture(FIRST_ORDER | {"renyi_sharpness", "adaptive_weight_sharpness"})
def torch_graph_convolution() -> Case:
    upper = torch.rand(4, 6, 6).gt(0.5).float().triu(1)
    inputs = (torch.randn(4, 6, 5), upper + upper.transpose(1, 2))
    return Case(GraphNetwork(), (inputs, _labels()), forward=lambda model, pair: model(*pair))


# --- timm


@architecture(EVERY)
def timm_vit() -> Case:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(32, 8, num_classes=CLASSES, embed_dim=16, depth=2, num_heads=2)
    return _images(model)


@architecture(EVERY)
def timm_deit_distilled() -> Case:
    from timm.models.deit import VisionTransformerDistilled

    model = VisionTransformerDistilled(
        img_size=32, patch_size=8, num_classes=CLASSES, embed_dim=16, depth=1, num_heads=2
    )
    return _images(model)


@architecture(EVERY)
def timm_convnext_v2() -> Case:
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(
        num_classes=CLASSES,
        depths=(1, 1, 1, 1),
        dims=(8, 8, 16, 16),
        kernel_sizes=3,
        use_grn=True,
        ls_init_value=None,
        conv_mlp=True,
    )
    return _images(model)


@architecture(EVERY)
def timm_resnet() -> Case:
    from timm.models.resnet import BasicBlock, ResNet

    # The last normalisation of each block starts at zero: blocks of the Hessian that vanish.
    model = ResNet(
        BasicBlock, (1, 1, 1, 1), num_classes=CLASSES, stem_width=4, channels=(4, 8, 16, 32)
    )
    return _untrained_images(model)


@architecture(EVERY)
def timm_resnet_v2_weight_standardized() -> Case:
    from timm.layers import GroupNormAct
    from timm.models.resnetv2 import ResNetV2

    model = ResNetV2(
        [1, 1],
        (16, 32),
        num_classes=CLASSES,
        stem_chs=8,
        norm_layer=partial(GroupNormAct, num_groups=4),
    )
    return _images(model)


@architecture(EVERY)
def timm_nfnet() -> Case:
    from timm.models.nfnet import NfCfg, NormFreeNet

    config = NfCfg((1, 1, 1, 1), (16, 16, 32, 32), stem_chs=8, group_size=8, act_layer="relu")
    return _images(NormFreeNet(config, num_classes=CLASSES))


@architecture(EVERY)
def timm_tf_efficientnet() -> Case:
    from timm.models.efficientnet import _gen_efficientnet

    model = _gen_efficientnet(
        "tf_efficientnet_b0",
        channel_multiplier=0.1,
        depth_multiplier=0.1,
        num_classes=CLASSES,
        pad_type="same",
    )
    return _images(model)


@architecture(EVERY)
def timm_regnet() -> Case:
    from timm.models.regnet import RegNet, RegNetCfg

    config = RegNetCfg(4, 8, 16.0, 1.5, group_size=4, stem_width=8, se_ratio=0.25)
    return _images(RegNet(config, num_classes=CLASSES))


@architecture(EVERY)
def timm_mixer() -> Case:
    from timm.models.mlp_mixer import MlpMixer

    model = MlpMixer(CLASSES, 32, patch_size=8, num_blocks=2, embed_dim=16)
    return _images(model)


@architecture(EVERY)
def timm_levit() -> Case:
    from timm.models.levit import Levit

    model = Levit(32, num_classes=CLASSES, embed_dim=(8, 16), key_dim=4, depth=(1, 1), num_heads=2)
    return _images(model)


@architecture(EVERY)
def timm_poolformer() -> Case:
    from timm.models.metaformer import MetaFormer

    model = MetaFormer(num_classes=CLASSES, depths=(1, 1), dims=(8, 16), res_scale_init_values=None)
    return _images(model)


@architecture(EVERY)
def timm_coat() -> Case:
    from timm.models.coat import CoaT

    model = CoaT(
        32,
        4,
        num_classes=CLASSES,
        embed_dims=(8, 8, 8, 8),
        serial_depths=(1, 1, 1, 1),
        parallel_depth=0,
        num_heads=2,
        mlp_ratios=(2, 2, 2, 2),
        crpe_window={3: 2},
    )
    return _images(model)


@architecture(EVERY)
def timm_xcit() -> Case:
    from timm.models.xcit import Xcit

    model = Xcit(32, 8, num_classes=CLASSES, embed_dim=16, depth=1, num_heads=2, cls_attn_layers=1)
    return _images(model)


@architecture(EVERY)
def timm_edgenext() -> Case:
    from timm.models.edgenext import EdgeNeXt

    model = EdgeNeXt(
        num_classes=CLASSES,
        dims=(8, 8, 16, 16),
        depths=(1, 2, 1, 1),
        global_block_counts=(0, 1, 0, 0),
        kernel_sizes=(3, 3, 3, 3),
        heads=(2, 2, 2, 2),
    )
    return _images(model)


@architecture(EVERY)
def timm_swin_v2() -> Case:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    model = SwinTransformerV2(
        32, num_classes=CLASSES, embed_dim=8, depths=(2, 1), num_heads=(2, 2), window_size=4
    )
    return _images(model)


@architecture(EVERY, twice_differentiable=False)
def timm_ghostnet() -> Case:
    from timm.models.ghostnet import GhostNet

    blocks = [[[3, 8, 8, 0, 1]], [[3, 16, 16, 0.25, 2]]]
    return _images(GhostNet(blocks, CLASSES, in_chans=3))


# --- transformers

_LOGITS: dict[str, Any] = {"outputs": lambda result: result.logits}
_TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "num_labels": CLASSES,
    "initializer_range": 0.2,
}


def _tokens(model: nn.Module, **options: Any) -> Case:
    # No padding: some models look for it to find the last token.
    tokens = torch.randint(3, VOCABULARY, (4, 6))
    return Case(model, (tokens, _labels()), **_LOGITS, **options)


def _next_token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over all positions of logits (n, T, C)."""
    return functional.cross_entropy(outputs.transpose(1, 2), targets)


def _language(model: nn.Module, **options: Any) -> Case:
    tokens = torch.randint(3, VOCABULARY, (2, 4))
    targets = tokens.roll(-1, 1)
    loss = {"loss": _next_token_loss, "mean_loss": _next_token_loss}
    return Case(model, (tokens, targets), **{**_LOGITS, **loss, **options})


@architecture(TOKENS)
def transformers_bert() -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    return _tokens(BertForSequenceClassification(BertConfig(**_TINY)))


@architecture(FIRST_ORDER | {"renyi_sharpness", "adaptive_weight_sharpness"})
def transformers_bert_with_mask() -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**{**_TINY, "num_hidden_layers": 1}))
    tokens = torch.randint(3, VOCABULARY, (4, 6))
    mask = torch.ones_like(tokens)
    mask[1, 4:] = mask[3, 2:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    return Case(
        model,
        (inputs, _labels()),
        forward=lambda model, inputs: model(**inputs).logits,
    )


@architecture(TOKENS)
def transformers_distilbert() -> Case:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
        dim=16,
        hidden_dim=32,
        n_layers=2,
        n_heads=2,
        num_labels=CLASSES,
    )
    return _tokens(DistilBertForSequenceClassification(config))


@architecture(TOKENS)
def transformers_roberta() -> Case:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return _tokens(RobertaForSequenceClassification(RobertaConfig(**_TINY)))


@architecture(TOKENS)
def transformers_albert() -> Case:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    # Its layers are one layer, called twice.
    config = AlbertConfig(**_TINY, embedding_size=8)
    return _tokens(AlbertForSequenceClassification(config))


@architecture(TOKENS)
def transformers_mpnet() -> Case:
    from transformers import MPNetConfig, MPNetForSequenceClassification

    return _tokens(MPNetForSequenceClassification(MPNetConfig(**_TINY)))


@architecture(TOKENS)
def transformers_gpt2_classifier() -> Case:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        pad_token_id=0,
        num_labels=CLASSES,
    )
    return _tokens(GPT2ForSequenceClassification(config))


@architecture(TOKENS)
def transformers_bloom() -> Case:
    from transformers import BloomConfig, BloomForSequenceClassification

    config = BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        n_layer=1,
        n_head=2,
        pad_token_id=0,
        num_labels=CLASSES,
    )
    return _tokens(BloomForSequenceClassification(config))


@architecture(EVERY)
def transformers_vit() -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**_TINY, image_size=16, patch_size=8)
    model = ViTForImageClassification(config)
    return Case(model, (torch.randn(4, 3, 16, 16), _labels()), **_LOGITS)


@architecture(POSITIONS)
def transformers_gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    # The last layer's weight is the embedding's.
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2, use_cache=False
    )
    return _language(GPT2LMHeadModel(config))


@architecture(POSITIONS, single_precision_inside=True)
def transformers_llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**_TINY, "num_hidden_layers": 1}, num_key_value_heads=1)
    return _language(LlamaForCausalLM(config))


@architecture(POSITIONS, single_precision_inside=True)
def transformers_mixtral() -> Case:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        **{**_TINY, "num_hidden_layers": 1},
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    return _language(MixtralForCausalLM(config))


@architecture(POSITIONS)
def transformers_opt() -> Case:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=32,
        max_position_embeddings=16,
        word_embed_proj_dim=16,
    )
    return _language(OPTForCausalLM(config))


@architecture(POSITIONS, single_precision_inside=True)
def transformers_t5() -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    tokens = torch.randint(3, VOCABULARY, (2, 5))
    targets = torch.randint(3, VOCABULARY, (2, 3))
    start = torch.zeros(2, 1, dtype=torch.long)
    inputs = {"input_ids": tokens, "decoder_input_ids": torch.cat([start, targets[:, :-1]], 1)}
    return Case(
        T5ForConditionalGeneration(config),
        (inputs, targets),
        _next_token_loss,
        forward=lambda model, inputs: model(**inputs).logits,
        mean_loss=_next_token_loss,
    )


def differentiable_twin(model: nn.Module) -> nn.Module:
    """Replace the modules of torch.nn that have no second derivative, in place, by equal ones."""
    for name, part in list(model.named_children()):
        if type(part) is nn.Hardsigmoid:
            setattr(model, name, HardSigmoid())
        elif type(part) is nn.EmbeddingBag:
            setattr(model, name, MeanEmbedding(part.weight))
        else:
            differentiable_twin(part)
    return model


class HardSigmoid(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.relu6(inputs + 3) / 6


class MeanEmbedding(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.embedding(inputs, self.weight).mean(1)


def in_float64(case: Case) -> Case:
    """Return a copy with weights, inputs and targets in float64."""
    model = copy.deepcopy(case.model).double()
    if hasattr(model, "set_experts_implementation"):
        # The grouped product of experts takes no float64.
        model.set_experts_implementation("eager")
    inputs, targets = case.data
    return replace(
        case, model=model, data=(moved(inputs, torch.float64), moved(targets, torch.float64))
    )


def moved(inputs: Any, dtype: torch.dtype) -> Any:
    """Return the inputs, or all of several ones, with their floating-point tensors in a dtype."""
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    if isinstance(inputs, Mapping):
        return {name: moved(part, dtype) for name, part in inputs.items()}
    return tuple(moved(part, dtype) for part in inputs)
