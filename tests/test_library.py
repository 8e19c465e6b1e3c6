"""`import edm` as a library: callables in place of names, training, evaluation, and what is refused in one line."""

import math
import warnings

import numpy as np
import pytest
import torch

import edm
from edm.design.schedules import VPSchedule, vp_scaling
from edm.design.timesteps import noise_levels, vp_levels
from edm.models import building

TINY = edm.TrainingConfig(
    resolution=8, channels=1, classes=10, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,),
    duration=0.0006, batch_size=32, lr_rampup=0.0, ema_halflife=0.0001, level_samples=2, dropout=0.0,
)  # fmt: skip
LABELS = torch.tensor([1, 2])


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return building.build(TINY).eval()


@pytest.fixture
def latents():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def gaussian(x, sigma, class_labels=None):
    """D of data N(0, 0.5²)."""
    return x * 0.25 / (0.25 + sigma**2)


class TestSample:
    def test_callables_are_what_their_names_are(self, latents):
        """A choice given as a function or an object gives the images of its name, to the bit."""
        low, high = 0.002, 80.0
        named = edm.sample(gaussian, latents, num_steps=9, discretization="vp", schedule="vp", scaling="vp",
                           sigma_min=low, sigma_max=high)  # fmt: skip
        given = edm.sample(gaussian, latents, num_steps=9, discretization=vp_levels, scaling=vp_scaling,
                           schedule=VPSchedule.through(low, high), sigma_min=low, sigma_max=high)  # fmt: skip
        assert torch.equal(named, given)

    def test_a_list_of_levels_is_a_discretisation(self, latents):
        levels = noise_levels("edm", 5, 0.002, 80.0, 7.0).tolist()
        found = [edm.sample(gaussian, latents, **{name: kind(levels)}) for name in ("discretization", "sigmas")
                 for kind in (list, tuple, torch.tensor, np.array)]  # fmt: skip
        named = edm.sample(gaussian, latents, num_steps=5)
        assert all(torch.allclose(images, named, rtol=1e-6) for images in found)

    @pytest.mark.parametrize("solver", ["heun", "euler", "unipc-3", "ipndm"])
    def test_the_callback_sees_every_step_once(self, latents, solver):
        seen = []
        edm.sample(gaussian, latents, num_steps=5, solver=solver, callback=lambda *step: seen.append(step))
        assert [i for i, *_ in seen] == [0, 1, 2, 3, 4]
        assert [sigma for _, sigma, *_ in seen] == sorted((sigma for _, sigma, *_ in seen), reverse=True)
        for _, sigma, x, denoised in seen:
            assert x.dtype == denoised.dtype == torch.float64 and torch.allclose(denoised, gaussian(x, sigma))

    def test_the_callback_is_told_the_level_after_churn(self, latents):
        seen = []
        edm.sample(gaussian, latents, num_steps=4, S_churn=1, callback=lambda i, sigma, *_: seen.append(sigma))
        assert seen[0] == pytest.approx(80 * 1.25)

    @pytest.mark.parametrize("solver", ["rk45", "vp-ode", "vp-sde", "ve-ode", "ve-pc", "ddim"])
    def test_every_solver_is_one_call(self, latents, net, solver):
        calls, steps = [], {} if solver == "rk45" else {"num_steps": 4}
        images = edm.sample(net, latents, LABELS, solver=solver, callback=lambda *step: calls.append(step), **steps)
        config = edm.SamplerConfig.from_dict({"solver": solver, **steps})
        assert images.shape == latents.shape and images.dtype == torch.float64
        assert [i for i, *_ in calls] == list(range(len(calls)))
        assert len(calls) == config.nfe if config.nfe else len(calls) > 6

    @pytest.mark.parametrize(
        ("choices", "message"),
        [
            ({"num_steps": 2.5}, "num_steps is 2.5, which is not a whole number"),
            ({"num_steps": True}, "num_steps is True, which is not a whole number"),
            ({"solver": None}, "solver is None, which is not text"),
            ({"schedule": 3}, "schedule: int has no function sigma, sigma_dot, inverse"),
            ({"scaling": 3}, "scaling is of type int; expected a name or a function"),
            ({"callback": "print"}, "callback is of type str; expected a name or a function"),
            ({"sigmas": "80"}, "sigmas: '80' is not a list of noise levels"),
            ({"sigmas": [1, 2]}, "sigmas must fall from each level to the next"),
            ({"sigmas": [2, 1], "discretization": [2, 1]}, "both list the noise levels"),
            ({"sigmas": [2, 1], "discretization": vp_levels}, "both give the noise levels"),
            ({"discretization": lambda n, low, high: [low, high]}, "expected 18 falling noise levels above 0"),
            ({"discretization": lambda n, low, high: "some"}, "gave no noise levels"),
            ({"solver": "rk45", "scaling": vp_scaling}, "solver rk45 has no scaling"),
            ({"S_churn": 3, "noise": lambda i, x: None}, r"noise\(0, x\) returned NoneType"),
            ({"S_churn": 3, "noise": lambda i, x: x[:1]}, r"noise\(0, x\) returned float64 \[1, 1, 8, 8\]"),
            ({"S_churn": 3, "noise": lambda i, x: x * math.nan}, r"noise\(0, x\) returned NaN or infinity"),
            ({"schedule": VPSchedule}, "schedule is the class VPSchedule; pass an object of it"),
            ({"scaling": lambda schedule, t: None}, r"scaling\(schedule, t\) returned NoneType for t \[\]"),
            ({"scaling": lambda schedule, t: (t[None], t)}, r"returned float64 \[1\], float64 \[\] for t \[\]"),
            ({"settings": ["solver.eta"]}, "settings is of type list; expected a dictionary"),
            ({"sigma_max": math.nan}, "sigma_max is nan, which is not a finite number"),
        ],
    )
    def test_settings_that_cannot_be_are_one_line(self, latents, choices, message):
        refused(message, lambda: edm.sample(gaussian, latents, **choices))

    def test_a_schedule_whose_inverse_is_not_one_is_refused(self, latents):
        class Wrong(VPSchedule):
            def inverse(self, sigma):
                return sigma

        refused("sigma.inverse.*expected the same", lambda: edm.sample(gaussian, latents, schedule=Wrong()))

    @pytest.mark.parametrize("name", ["sigma", "sigma_dot", "inverse"])
    def test_a_schedule_that_gives_something_else_is_refused(self, latents, name):
        for found, told in ((None, "NoneType"), (torch.ones(1), r"float32 \[1\]")):
            schedule = VPSchedule()
            broken = type("Broken", (), {one: getattr(schedule, one) for one in ("sigma", "sigma_dot", "inverse")}
                          | {name: lambda self, _, found=found: found})()  # fmt: skip
            refused(f"schedule: {name} of float64 .3. gave {told}", lambda b=broken: edm.sample(
                gaussian, latents, schedule=b))  # fmt: skip

    def test_numbers_of_numpy_are_numbers(self, latents):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours = edm.sample(gaussian, latents, num_steps=3, sigma_max=16.0)
            theirs = edm.sample(gaussian, latents, num_steps=np.int64(3), sigma_max=np.float32(16))
        assert torch.equal(ours, theirs)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            (lambda x: (x.numpy(), LABELS), "latents is of type ndarray"),
            (lambda x: (x.long(), LABELS), r"latents is torch.int64 \[2, 1, 8, 8\]; expected floats"),
            (lambda x: (x * math.nan, LABELS), "latents: not all finite"),
            (lambda x: (x.to("meta"), LABELS), "latents are on meta, the model on cpu"),
            (lambda x: (x.expand(2, 3, 8, 8), LABELS), "the model takes 1 channels"),
            (lambda x: (x[..., :7], LABELS), "sides that are multiples of 2"),
            (lambda x: (x, LABELS.numpy()), "class_labels is of type ndarray; expected a tensor, such as"),
            (lambda x: (x, LABELS[:1]), r"class_labels of shape \[1\]: expected 2 indices"),
            (lambda x: (x, LABELS + 8), "class_labels must lie in 0 to 9"),
            (lambda x: (x, torch.zeros(2, 9)), "class_labels has 9 columns; the model has 10 classes"),
            (lambda x: (x, torch.full((2, 10), math.nan)), "class_labels: not all finite"),
            (lambda x: (x, [1, 2]), "class_labels is of type list"),
        ],
    )  # fmt: skip
    def test_inputs_that_do_not_fit_are_one_line(self, net, latents, inputs, message):
        refused(message, lambda: edm.sample(net, *inputs(latents), num_steps=2))

    @pytest.mark.parametrize(
        ("wrong", "found"), [(lambda x, *rest: x[:1], r"float64 \[1, 1, 8, 8\]"), (lambda x, *_: [x], "list"),
                             (lambda x, *_: x * 1j, r"complex128 \[2, 1, 8, 8\]")],
    )  # fmt: skip
    def test_a_denoiser_that_returns_something_else_is_one_line(self, latents, wrong, found):
        refused(f"net: returned {found} for x", lambda: edm.sample(wrong, latents, num_steps=2))
        refused("net is of type int", lambda: edm.sample(3, latents, num_steps=2))

    @pytest.mark.parametrize("sigma", ["a", -1.0, math.nan, [1.0, 2.0, 3.0]])
    def test_a_level_that_is_none_is_one_line(self, net, latents, sigma):
        refused("sigma (is|has)", lambda: net(latents, sigma, LABELS))

    def test_augmentation_of_a_model_without_it_is_refused(self, net, latents):
        refused("trained without augmentation", lambda: net(latents, 1.0, LABELS, torch.zeros(2, 9)))


class TestTrain:
    @pytest.mark.parametrize("side", [28, 96])
    @pytest.mark.first(1)
    def test_sides_that_are_no_powers_of_two_go_from_arrays_to_a_distance(self, tmp_path, side):
        """28 and 96 can be halved twice; in features of plain pixels it is a Fréchet distance, not FID."""
        images = np.random.default_rng(0).integers(0, 256, (40, 1, side, side), dtype=np.uint8)
        dataset = edm.Dataset.from_arrays(images, np.arange(40) % 2)
        config = edm.TrainingConfig(
            resolution=side, channels=1, classes=2, model_channels=4, channel_mult=(1, 1, 2), num_blocks=1,
            attn_resolutions=(side // 4,), duration=1.6e-5, batch_size=8, augment=0.2, level_samples=2,
        )  # fmt: skip
        net = edm.train(config, dataset, tmp_path / "out")
        drawn = edm.sample(net, torch.randn(2, 1, side, side), torch.tensor([0, 1]), num_steps=2)
        assert drawn.shape == (2, 1, side, side) and drawn.isfinite().all()
        found = edm.evaluate(net, dataset, features="pixels", images=4, block=4, sampler=edm.SamplerConfig(num_steps=2))
        assert found["label"].startswith("FD (") and found["images"] == 4 and found["nfe"] == 3
        assert found["distance"] > 0

    def test_the_same_call_resumes_and_then_loads(self, tmp_path, digits_arrays):
        dataset = edm.Dataset.from_arrays(*digits_arrays)
        first = edm.train(TINY, dataset, tmp_path / "a")
        again = edm.train(TINY, dataset, tmp_path / "a")
        loaded = edm.load(tmp_path / "a" / "model.safetensors")
        for one, two, three in zip(first.parameters(), again.parameters(), loaded.parameters(), strict=True):
            assert torch.equal(one, two) and torch.equal(one, three)

    def test_what_does_not_fit_is_refused_and_nothing_is_overwritten(self, tmp_path, digits_arrays):
        dataset = edm.Dataset.from_arrays(*digits_arrays)
        edm.train(TINY, dataset, tmp_path / "a")
        before = (tmp_path / "a" / "model.safetensors").read_bytes()
        other = edm.TrainingConfig(**{**TINY.to_dict(), "seed": 1})
        refused("holds a finished training run", lambda: edm.train(other, dataset, tmp_path / "a"))
        assert (tmp_path / "a" / "model.safetensors").read_bytes() == before
        large = edm.TrainingConfig(**{**TINY.to_dict(), "resolution": 16})
        refused(
            "images are 8x8 with 1 channels; the configuration expects 16x16",
            lambda: edm.train(large, dataset, tmp_path / "b"),
        )
        refused("config is of type dict", lambda: edm.train(TINY.to_dict(), dataset, tmp_path / "b"))
        for wrong in (digits_arrays[0], None, 3):
            refused(
                r"dataset is of type \w+; expected.*from_arrays", lambda w=wrong: edm.train(TINY, w, tmp_path / "b")
            )
        refused("out is of type NoneType; expected the path of a folder", lambda: edm.train(TINY, dataset, None))
        for wrong in ("a", -1, math.nan):
            refused("state_every is .*; expected a number of seconds",
                    lambda w=wrong: edm.train(TINY, dataset, tmp_path / "b", state_every=w))  # fmt: skip
        refused("device '0' is unknown", lambda: edm.train(TINY, dataset, tmp_path / "b", device=0))
        assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module")
def digits_arrays():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8), np.arange(60) % 10


class TestDataset:
    def test_arrays_are_a_dataset(self, digits_arrays):
        images, labels = digits_arrays
        dataset = edm.Dataset.from_arrays(images, labels)
        assert (
            dataset.classes == 10 and np.array_equal(dataset.images, images) and np.array_equal(dataset.labels, labels)
        )
        assert dataset.sha256 == edm.Dataset.from_arrays(images, labels.tolist()).sha256
        others = [edm.Dataset.from_arrays(images), edm.Dataset.from_arrays(images[::-1], labels),
                  edm.Dataset.from_arrays(images, labels[::-1])]  # fmt: skip
        assert len({dataset.sha256, *(other.sha256 for other in others)}) == 4

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (np.zeros((2, 8, 8, 3), np.uint8), None, r"images.transpose\(0, 3, 1, 2\)"),
            (np.zeros((2, 3, 8, 8), np.float32), None, "float32"),
            (np.zeros((2, 3, 8, 9), np.uint8), None, "must be square"),
            (np.zeros((2, 2, 8, 8), np.uint8), None, r"expected uint8 \[1 or 3, side, side\]"),
            (np.zeros((0, 3, 8, 8), np.uint8), None, "N > 0"),
            (np.zeros((2, 3, 8, 8), np.uint8), [0], r"labels have shape \[1\]"),
            (np.zeros((2, 3, 8, 8), np.uint8), [0, 1.5], r"labels\[0\] is not a class index"),
            (np.zeros((2, 3, 8, 8), np.uint8), [0, -1], r"labels\[1\] is not a class index"),
            (
                np.zeros((2, 3, 8, 8), np.uint8),
                [[0], [0, 1]],
                "images and labels are no arrays: setting an array element",
            ),
            ([[1], [2, 3]], None, "images and labels are no arrays"),
            (torch.zeros(2, 3, 8, 8, dtype=torch.uint8, device="meta"), None, "no arrays: can't convert meta device"),
        ],
    )
    def test_arrays_that_are_none_are_one_line(self, images, labels, message):
        refused(message, lambda: edm.Dataset.from_arrays(images, labels))


class TestDistances:
    def test_any_two_sides_have_a_distance(self, tmp_path):
        generator = np.random.default_rng(0)
        first, second = generator.normal(size=(50, 3)), generator.normal(1, 2, size=(60, 3))
        mu, sigma = second.mean(0), np.cov(second, rowvar=False)
        np.savez(tmp_path / "ref.npz", mu=mu, sigma=sigma)
        expected = edm.frechet_distance(first, second)
        for side in (torch.from_numpy(second), (mu, sigma), tmp_path / "ref.npz"):
            assert edm.frechet_distance(first, side) == pytest.approx(expected, rel=1e-12)
        assert edm.frechet_distance(([0.0], [[1.0]]), ([3.0], [[4.0]])) == pytest.approx(9 + 1)  # (0−3)² + (1−2)²

    @pytest.mark.parametrize(
        "side, message",
        [(3, "second is int; expected"), (np.zeros(4), "second is ndarray of shape"), ("nowhere.npz", "no such file"),
         (np.zeros((2, 3, 4)), "second is ndarray"), ((np.zeros(3), np.zeros(3)), "second is tuple; expected"),
         (np.ones((4, 3)) * 1j, "an array of complex128"),
         (np.full((4, 3), "a"), "an array of <U1; expected features"), (torch.ones(4, 3) > 0, "a tensor of torch.bool"),
         (np.full((4, 3), np.nan), "not all finite")],
    )  # fmt: skip
    def test_what_has_no_distance_is_one_line(self, side, message):
        refused(message, lambda: edm.frechet_distance(np.random.default_rng(0).normal(size=(9, 3)), side))

    def test_images_are_measured_as_they_are(self, digits_arrays):
        images, _ = digits_arrays
        dataset = edm.Dataset.from_arrays(images)
        same, other = (edm.evaluate(found, dataset, features="pixels") for found in (images, 255 - images))
        assert same["distance"] == pytest.approx(0, abs=1e-6) and other["distance"] > same["distance"]
        refused("images are torch.float32", lambda: edm.evaluate(torch.zeros(2, 1, 8, 8), dataset, features="pixels"))
        refused("list cannot be measured", lambda: edm.evaluate([1], dataset, features="pixels"))
        refused("unknown feature extractor", lambda: edm.evaluate(images, dataset, features="pixel"))
        last = images.transpose(0, 2, 3, 1)
        refused("with 1 or 3 channels, which come second", lambda: edm.evaluate(last, dataset, features="pixels"))
        refused("dataset is of type ndarray", lambda: edm.evaluate(images, images, features="pixels"))

    @pytest.mark.parametrize(
        "choices, message",
        [
            ({"images": 2.5}, "images is 2.5; a distance needs a whole number of at least 2"),
            ({"images": math.nan}, "images is nan; a distance needs a whole"),
            ({"images": 1}, "images is 1; a distance needs"),
            ({"first_seed": 0.5}, "first_seed is 0.5; expected a whole number from 0"),
            ({"first_seed": -1}, "first_seed is -1; expected a whole number from 0"),
            ({"block": 0}, "block is 0; expected 'auto' or a whole number from 1"),
            ({"block": "big"}, "block is 'big'; expected 'auto'"),
            ({"sampler": {"num_steps": 2}}, "sampler is of type dict; expected an edm.SamplerConfig"),
        ],
    )
    def test_what_cannot_be_drawn_is_one_line(self, digits_arrays, choices, message):
        images, _ = digits_arrays
        dataset = edm.Dataset.from_arrays(images)
        refused(message, lambda: edm.evaluate(images, dataset, features="pixels", **choices))

    def test_a_device_that_is_none_is_one_line(self):
        refused("device 'tpu' is unknown", lambda: edm.frechet_distance(np.eye(3), np.eye(3), device="tpu"))


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (np.zeros((2, 1, 8, 8)), None, "images is of type ndarray"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), None, r"images is torch.uint8 \[2, 1, 8, 8\]; expected floats"),
        (torch.full((2, 1, 8, 8), math.nan), None, "images: not all finite"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.long), r"labels have shape \[3\]; expected one per image"),
    ],
)
def test_an_ideal_denoiser_of_something_else_is_one_line(images, labels, message):
    refused(message, lambda: edm.IdealDenoiser(images, labels))


def refused(message, call):
    with pytest.raises(edm.UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
