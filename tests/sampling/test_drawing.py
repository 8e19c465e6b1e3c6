"""Image i depends on seed i alone."""

from itertools import pairwise

import pytest
import torch

import edm
from edm.config import ORIGINAL, SamplerConfig
from edm.data.pixels import to_uint8
from edm.design.preconditioning import VPPreconditioning
from edm.models import building
from edm.sampling.drawing import generate, part_of
from edm.sampling.originals import ORIGINAL_SAMPLERS

CHURN = SamplerConfig(num_steps=6, S_churn=3, S_noise=1.007)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    config = edm.TrainingConfig(
        resolution=8,
        channels=1,
        classes=10,
        model_channels=16,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
    )
    denoiser = building.build(config).eval().requires_grad_(False)
    torch.nn.init.normal_(denoiser.network.out_conv.weight, std=0.1)
    return denoiser


def draw(net, seeds, block=16, **options):
    parts = list(generate(net, CHURN, seeds, (1, 8, 8), classes=10, block=block, **options))
    return (
        torch.cat([p.images for p in parts]),
        torch.cat([p.labels for p in parts]),
        torch.cat([p.seeds for p in parts]),
    )


def test_64_seeds_at_once_or_in_any_split_give_identical_images(net):
    images, labels, seeds = draw(net, range(64))
    assert seeds.tolist() == list(range(64))
    for cuts in ([0, 16, 64], [0, 1, 2, 33, 64], [0, 31, 64], list(range(0, 65, 8))):
        parts = [draw(net, range(a, b)) for a, b in pairwise(cuts)]
        assert torch.equal(torch.cat([p[0] for p in parts]), images), cuts
        assert torch.equal(torch.cat([p[1] for p in parts]), labels), cuts


def test_parts_share_the_blocks_out(net):
    images, _, _ = draw(net, range(5, 60))
    parts = [part_of(range(5, 60), 16, index, 3) for index in range(3)]
    assert parts == [range(5, 32), range(32, 48), range(48, 60)]
    assert torch.equal(torch.cat([draw(net, part)[0] for part in parts]), images)


@pytest.mark.parametrize("seeds", [range(64), range(5, 60), range(100, 101), range(16, 48), range(3, 3)])
@pytest.mark.parametrize("block", [1, 7, 16, 100])
def test_parts_in_order_are_the_seeds_cut_between_blocks(seeds, block):
    for count in (1, 2, 3, 7, 100):
        parts = [part_of(seeds, block, index, count) for index in range(count)]
        assert [seed for part in parts for seed in part] == list(seeds)
        assert all(a.stop == b.start for a, b in pairwise(parts))
        blocks = [{seed // block for seed in part} for part in parts]
        assert sum(map(len, blocks)) == len(set().union(*blocks)), "a block is computed once"
        sizes = [len(numbers) for numbers in blocks]
        assert max(sizes) - min(sizes) <= 1 and sizes[0] == max(sizes)
        assert parts == [part_of(part_of(seeds, block, index, count), block, 0, 1) for index in range(count)]


@pytest.mark.parametrize("block", [pytest.param(1, marks=pytest.mark.slow), 7, 64, 100])
@pytest.mark.first(1)
def test_other_block_sizes_agree_to_rounding(net, block):
    images, labels, _ = draw(net, range(64))
    others, other_labels, _ = draw(net, range(64), block=block)
    assert torch.equal(labels, other_labels)
    # The products of one image round otherwise than those of many, and Winograd's convolutions round more than others.
    torch.testing.assert_close(others, images, rtol=0, atol=2e-5)


def test_a_class_can_be_asked_for(net):
    _, labels, _ = draw(net, range(10), class_label=7)
    assert labels.tolist() == [7] * 10


def test_pixels_are_truncated_as_the_protocol_says():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.003, 1.0, 2.0], dtype=torch.float64)
    assert to_uint8(values).tolist() == [0, 0, 128, 128, 255, 255]


@pytest.mark.parametrize("solver, nfe", [("euler", 6), ("heun", 11), ("vp-ode", 6), ("vp-sde", 6), ("rk45", None)])
@pytest.mark.first(2)
def test_every_kind_of_sampler_depends_on_the_seed_alone(net, solver, nfe):
    """The originals and the black box too: their draws come from the seeds, their step sizes from each image."""
    net = edm.Denoiser(net.network, VPPreconditioning()).eval()
    config = SamplerConfig(solver=solver, **({"tolerance": 0.05} if solver == "rk45" else {"num_steps": 6}))

    def images(seeds):
        parts = list(generate(net, config, seeds, (1, 8, 8), classes=10, block=4))
        return torch.cat([p.images for p in parts]), torch.cat([p.nfe for p in parts])

    whole, counts = images(range(10))
    split = [images(range(a, b)) for a, b in pairwise([0, 3, 8, 10])]
    assert torch.equal(torch.cat([part for part, _ in split]), whole)
    assert torch.equal(torch.cat([count for _, count in split]), counts)
    assert (counts == nfe).all() if nfe else ((counts - 2) % 6 == 0).all()


def test_the_names_and_costs_of_the_original_samplers_are_told_once():
    assert ORIGINAL_SAMPLERS.keys() == ORIGINAL.keys()


@pytest.mark.parametrize(
    "seeds, options, message",
    [
        (range(3, 3), {}, "expected a range"),
        (range(4), {"block": 0}, "block is 0"),
        (range(4), {"class_label": 10}, "class 10 is not one of the model's 10"),
    ],
)
def test_requests_that_make_no_sense_are_refused(net, seeds, options, message):
    with pytest.raises(edm.UserError, match=message):
        draw(net, seeds, **options)
