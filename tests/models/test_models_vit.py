import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from paperkit.models import SimpleViT, ViT, build
from paperkit.models.vit import Attention, Patches, sinusoidal_positions


def noise(device, *shape):
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64).to(device)


def layer_norm(x, module):
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + module.eps).sqrt() * module.weight + module.bias


def attended(x, attention):
    """Write attention out, head by head and token by token."""
    dim = x.shape[-1]
    width = dim // attention.heads
    q, k, v = (layer_norm(x, attention.norm) @ attention.qkv.weight.T).split(dim, dim=-1)
    columns = []
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        for_head = []
        for i in range(x.shape[1]):
            others = [j for j in range(x.shape[1]) if not (attention.locality and j == i)]
            scale = attention.temperature.exp() if attention.locality else 1 / math.sqrt(width)
            scores = torch.stack([(q[:, i, part] * k[:, j, part]).sum(-1) for j in others], 1)
            weights = torch.exp(scale * scores)
            weights = weights / weights.sum(1, keepdim=True)
            for_head.append(sum(weights[:, [s]] * v[:, j, part] for s, j in enumerate(others)))
        columns.append(torch.stack(for_head, 1))
    bias = 0 if attention.out.bias is None else attention.out.bias
    return torch.cat(columns, dim=-1) @ attention.out.weight.T + bias


def blocks_by_hand(x, blocks):
    for block in blocks:
        x = x + attended(x, block.attention)
        forward = block.feed_forward
        hidden = layer_norm(x, forward.norm) @ forward.fc1.weight.T + forward.fc1.bias
        x = x + functional.gelu(hidden) @ forward.fc2.weight.T + forward.fc2.bias
    return x


def patches_by_hand(images, side, shifted):
    """Collect the entries of each patch: row, column, then channels of the copies in turn."""
    copies = [images]
    if shifted:
        wide = functional.pad(images, (1, 1, 1, 1))
        height, width = images.shape[2:]
        # A shift to the right shows what stood on the left.
        for row, column in ((1, 0), (1, 2), (0, 1), (2, 1)):
            copies.append(wide[:, :, row : row + height, column : column + width])
    stacked = torch.cat(copies, dim=1)
    result = []
    for top in range(0, images.shape[2], side):
        for left in range(0, images.shape[3], side):
            square = stacked[:, :, top : top + side, left : left + side]
            result.append(square.permute(0, 2, 3, 1).flatten(1))
    return torch.stack(result, dim=1)


@pytest.mark.parametrize("shifted", [True, False])
def test_patches_are_cut_row_by_row_from_the_image_and_its_shifted_copies(shifted, device):
    images = noise(device, 2, 3, 8, 12)
    cut = Patches(4, shifted)(images)
    assert cut.shape == (2, 6, 16 * 3 * (5 if shifted else 1))
    assert torch.equal(cut, patches_by_hand(images, 4, shifted))


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("locality", [True, False])
def test_vit_follows_the_equations(shifted, locality, device):
    model = ViT(
        2, 3, (8, 4), patch=4, dim=8, depth=2, heads=2, mlp_dim=6,
        shifted_patches=shifted, locality=locality,
    )  # fmt: skip
    model = model.to(device).double()
    inputs = noise(device, 3, 2, 8, 4)
    x = layer_norm(patches_by_hand(inputs, 4, shifted), model.patch_norm)
    x = x @ model.embedding.weight.T + model.embedding.bias
    x = torch.cat([model.class_token.expand(3, 1, 8), x], dim=1) + model.positions
    x = blocks_by_hand(x, model.blocks)
    expected = layer_norm(x[:, 0], model.norm) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(inputs), expected, rtol=1e-10, atol=1e-10)


def test_simple_vit_follows_the_equations(device):
    model = SimpleViT(2, 3, (8, 12), patch=4, dim=8, depth=2, heads=2, mlp_dim=6)
    model = model.to(device).double()
    inputs = noise(device, 3, 2, 8, 12)
    x = layer_norm(patches_by_hand(inputs, 4, shifted=False), model.patch_norm)
    x = x @ model.embedding.weight.T + model.embedding.bias
    x = layer_norm(x, model.embedding_norm) + model.positions
    x = layer_norm(blocks_by_hand(x, model.blocks), model.norm).mean(dim=1)
    expected = x @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(inputs), expected, rtol=1e-10, atol=1e-10)


def test_fixed_positions_are_sines_and_cosines_of_column_and_row():
    positions = sinusoidal_positions(3, 4, 8)
    assert positions.shape == (12, 8)
    for row in range(3):
        for column in range(4):
            expected = [
                function(coordinate * frequency)
                for coordinate in (column, row)
                for function in (math.sin, math.cos)
                for frequency in (1.0, 1e-4)
            ]
            found = positions[4 * row + column]
            expected = torch.tensor(expected, dtype=torch.float64, device="cpu")
            torch.testing.assert_close(found, expected)


def test_no_token_attends_to_itself_with_locality(device):
    """With two tokens, each then gets exactly what the other has to give."""
    attention = Attention(4, 2, bias=True, locality=True).to(device).double()
    tokens = noise(device, 3, 2, 4)
    v = attention.qkv(attention.norm(tokens))[..., 8:]
    torch.testing.assert_close(attention(tokens), attention.out(v.flip(1)))


def test_derivatives_of_every_order_are_finite_with_locality(device):
    """The excluded scores are −∞, whose derivatives must not become NaN."""
    model = ViT(1, 3, (8, 8), dim=8, depth=1, heads=2, mlp_dim=8).to(device).double()
    loss = model(noise(device, 2, 1, 8, 8)).square().sum()
    parameters = tuple(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), parameters)
    assert all(part.isfinite().all() for part in (*gradients, *second))


def test_the_factor_of_the_scores_starts_at_the_usual_one():
    attention = ViT(1, 3, (8, 8), dim=8, depth=1, heads=2, mlp_dim=8).blocks[0].attention
    torch.testing.assert_close(attention.temperature.exp().item(), 0.5, rtol=1e-6, atol=0)


def test_vit_small_has_the_sizes_of_the_release():
    model = build("vit_small", in_channels=1, num_classes=10, input_shape=(1, 8, 8))
    assert len(model.blocks) == 6
    attention, forward = model.blocks[0].attention, model.blocks[0].feed_forward
    assert attention.heads == 8
    assert attention.qkv.weight.shape == (1536, 512)
    assert forward.fc1.weight.shape == (512, 512)
    assert model.patches.patch == 4
    assert model.patches.shifted
    assert attention.locality
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())


@pytest.mark.parametrize("kind", [ViT, SimpleViT])
def test_everything_is_made_where_the_layers_are(kind):
    with torch.device("meta"):
        model = kind(1, 3, (8, 8), dim=8, depth=1, heads=2, mlp_dim=8)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
