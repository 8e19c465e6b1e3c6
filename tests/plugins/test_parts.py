"""Our own parts and those of plugins are in one registry, with one protocol per kind."""

import inspect
import json
import subprocess
import sys

import pytest
import torch
from every import PARTS, file_of

import edm
from edm import registry
from edm.config import MEMBERS, SamplerConfig, TrainingConfig
from edm.errors import UserError
from edm.models import building, checkpoint

EULER = file_of(PARTS["solver"])


def ideal(digits):
    return edm.IdealDenoiser(torch.from_numpy(digits.images[:40]).float() / 127.5 - 1)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_kind_has_a_protocol_that_says_what_it_gets_and_gives(kind):
    found = registry.KINDS[kind]
    assert len(inspect.getdoc(found.protocol)) > 80
    assert found.given or found.methods


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_part_of_ours_is_registered(kind):
    for name in registry.Names(kind):
        if not (kind == "solver" and name in MEMBERS):  # names for settings of another solver
            assert registry.find(kind, name).own


def test_the_registry_needs_no_torch():
    code = "import sys, edm.registry, edm.params; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_solver_of_a_plugin_is_one_of_the_solvers(plugin, digits):
    plugin(EULER)
    net, latents = ideal(digits), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    seen = []
    ours = edm.sample(net, latents, solver="euler", num_steps=6)
    theirs = edm.sample(net, latents, solver="lab-euler", num_steps=6, callback=lambda i, *_: seen.append(i))
    assert torch.allclose(ours, theirs, atol=1e-12, rtol=0) and seen == list(range(6))
    half = edm.sample(net, latents, solver="lab-euler", num_steps=6, settings={"solver.eta": 0.5})
    assert not torch.allclose(ours, half, atol=1e-3)


def test_settings_of_a_plugin_are_in_the_configuration_only_if_they_are_no_defaults(plugin):
    plugin(EULER)
    plain = SamplerConfig.from_dict({"solver": "lab-euler", "solver.eta": 1})
    stated = SamplerConfig.from_dict({"solver": "lab-euler", "solver.eta": 0.5, "num_steps": 4})
    assert plain.changes() == {"solver": "lab-euler"}
    assert stated.changes() == {"solver": "lab-euler", "num_steps": 4, "solver.eta": 0.5}
    assert SamplerConfig.from_dict(json.loads(json.dumps(stated.to_dict()))) == stated
    assert SamplerConfig.from_dict(stated.changes()) == stated
    assert (stated.nfe, stated.expected_nfe) == (None, 4)


@pytest.mark.parametrize(
    "stated, message",
    [
        ({"solver": "lab-eulr"}, "solver 'lab-eulr' is unknown"),
        ({"solver": "lab-euler", "solver.etta": 1.0}, r"no setting solver\.etta; did you mean 'solver\.eta'\?"),
        ({"solver": "lab-euler", "solver.eta": "1"}, r"solver\.eta is '1', which is not a finite number"),
        ({"solver": "heun", "solver.eta": 1.0}, r"solver\.eta: solver heun is edm's own and has no such setting"),
        ({"solver": "lab-euler", "S_churn": 4.0}, "solver lab-euler has no S_churn"),
        ({"solver": "lab-euler", "sampler.eta": 4.0}, r"field 'sampler\.eta' is unknown"),
        ({"solver": "lab-euler", "settings": []}, "field 'settings' is unknown"),
    ],
)
def test_a_wrong_setting_of_a_plugin_is_one_line(plugin, stated, message):
    plugin(EULER)
    with pytest.raises(UserError, match=message) as caught:
        SamplerConfig.from_dict(stated)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body, message",
    [
        ("return latents[:1]", r"solver lab: returned a tensor \[1, 1, 8, 8\]; expected images \[3, 1, 8, 8\]"),
        ("return None", r"solver lab: returned NoneType; expected images"),
        ("return latents / none", r"plugin\.py:5: solver lab: NameError: name 'none' is not defined"),
        ("return denoise(latents, 'high')", r"plugin\.py:5: solver lab: \w*Error"),
    ],
)
def test_a_solver_that_fails_says_where(plugin, digits, body, message):
    plugin(f"import edm\n\n@edm.register('solver', 'lab')\ndef f(denoise, latents, sigmas, noise):\n    {body}\n")
    with pytest.raises(UserError, match=message) as caught:
        edm.sample(ideal(digits), torch.randn(3, 1, 8, 8), solver="lab", num_steps=2)
    assert "\n" not in str(caught.value)


def test_time_steps_schedule_and_scaling_of_a_plugin(plugin, digits):
    plugin(file_of(PARTS["discretization"], PARTS["schedule"], PARTS["scaling"]))
    net, latents = ideal(digits), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    levels = []
    seen = lambda i, sigma, *_: levels.append(sigma)
    found = edm.sample(net, latents, num_steps=5, discretization="lab-steps", solver="euler", callback=seen)
    assert levels[0] == pytest.approx(50) and levels[-1] == pytest.approx(0.01)
    same = edm.sample(net, latents, num_steps=5, discretization="ve", sigma_min=0.01, sigma_max=50, solver="euler")
    assert torch.allclose(found, same, atol=1e-12, rtol=0)
    ours = edm.sample(net, latents, num_steps=64, schedule="vp", scaling="vp")
    theirs = edm.sample(net, latents, num_steps=64, schedule="lab-power", scaling="lab-unit")
    assert torch.allclose(ours, theirs, atol=0.05)  # other paths to the same images
    for wrong, message in (({"power": 0.0}, "expected 5 falling noise levels above 0"),):
        with pytest.raises(UserError, match=message):
            settings = {f"discretization.{key}": value for key, value in wrong.items()}
            edm.sample(net, latents, num_steps=5, discretization="lab-steps", settings=settings)


LAPLACE = """
    import torch

    @edm.register("loss", "lab-laplace")
    class Laplace:
        sigma_range = (1e-4, 1e4)

        def __init__(self, centre: float = -1.2, width: float = 0.9, sigma_data: float = 0.5):
            self.centre, self.width, self.sigma_data = centre, width, sigma_data

        def sigma(self, u):
            away = torch.where(u < 0.5, (2 * u).log(), -(2 - 2 * u).log())
            return (self.centre + self.width * away).exp().clamp(*self.sigma_range)

        def density(self, sigma):
            return (-(sigma.log() - self.centre).abs() / self.width).exp() / (2 * self.width)

        def weight(self, sigma):
            return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
    """
LOSS = file_of(LAPLACE, PARTS["preconditioning"], PARTS["architecture"])
DESIGN = {"loss": "lab-laplace", "preconditioning": "lab-v", "architecture": "lab-net", "augment": 0.0}


def test_a_model_of_plugins_trains_resumes_and_samples(plugin, tiny, digits, tmp_path):
    plugin(LOSS)
    config = TrainingConfig.from_dict(
        {**tiny().to_dict(), **DESIGN, "loss.width": 0.5, "architecture.width": 8, "sigma_data": 0.4}
    )
    net = edm.train(config, digits, tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    again = edm.load(path)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(net.parameters(), again.parameters(), strict=True))
    assert (again.sigma_min, again.sigma_max) == (1e-4, 1e4)
    images = edm.sample(again, torch.randn(2, 1, 8, 8), torch.arange(2), num_steps=3)
    assert images.shape == (2, 1, 8, 8) and images.isfinite().all()
    header = checkpoint.describe(path)
    assert [(one["kind"], one["name"]) for one in header["plugins"]] == [
        ("architecture", "lab-net"), ("preconditioning", "lab-v"), ("loss", "lab-laplace"),
    ]  # fmt: skip
    assert header["config"]["loss.width"] == 0.5
    from edm.networks.flops import flops, parameters

    assert parameters(config) == sum(parameter.numel() for parameter in net.network.parameters())
    assert flops(config) == 2 * (64 * 9 * 8 * 2) + 2 * 8 * 11


def test_fields_of_ours_that_a_plugin_declares_are_its_settings(plugin, tiny):
    plugin(LOSS)
    config = TrainingConfig.from_dict({**tiny().to_dict(), **DESIGN, "sigma_data": 0.3})
    sigma = torch.tensor([0.3], dtype=torch.float64)
    assert building.loss_of(config).weight(sigma).item() == pytest.approx(2 / 0.3**2)
    c_skip, *_ = building.preconditioning_of(config).coefficients(torch.full((1, 1, 1, 1), 0.3))
    assert c_skip.item() == pytest.approx(0.5)


def test_a_checkpoint_names_the_plugin_that_it_needs(plugin, tiny, tmp_path):
    path = plugin(LOSS)
    config = TrainingConfig.from_dict({**tiny().to_dict(), **DESIGN})
    checkpoint.save(tmp_path / "model.safetensors", building.build(config), config, {})
    for part in registry.plugins():
        del registry._parts[part.kind, part.name]
    registry._loaded.clear()
    with pytest.raises(
        UserError, match=rf"needs architecture lab-net of the plugin {path} \(sha256 .*edm --plugins"
    ) as caught:
        edm.load(tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value)


def test_a_changed_plugin_of_a_checkpoint_is_a_warning(plugin, tiny, tmp_path, capsys):
    plugin(LOSS)
    config = TrainingConfig.from_dict({**tiny().to_dict(), **DESIGN})
    checkpoint.save(tmp_path / "model.safetensors", building.build(config), config, {})
    edm.load(tmp_path / "model.safetensors")
    assert not capsys.readouterr().err
    plugin(LOSS + "\n")
    edm.load(tmp_path / "model.safetensors")
    assert "made with another version of loss lab-laplace" in capsys.readouterr().err


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("c_noise[:, None]", "c_noise", r"plugin\.py:\d+: architecture lab-net: \w*Error"),
        ("(width, channels, 3", "(width, channels + 1, 3", r"architecture lab-net: returned \[\d+, 2, 8, 8\] for x"),
        ("class Net(torch.nn.Module):", "class Net:", "architecture lab-net: "),
        ("(1e-4, 1e4)", "(1e4, 1e-4)", "loss lab-laplace: sigma_range is 10000 to 0.0001"),
        ("(self.centre + self", "-(self.centre + self", r"loss lab-laplace: sigma\(u\) "),
        (" / (2 * self.width)", ".sum()", r"loss lab-laplace: density gave \[\] for \[50\]; expected"),
        ("total.rsqrt(), self.scale", "self.scale", r"preconditioning lab-v: coefficients gave \[4, 1, 1, 1\], \[4"),
        ("self.scale * sigma.log()", "self.scale", r"preconditioning lab-v: coefficients gave"),
    ],
)
def test_a_part_of_a_model_that_fails_says_where(plugin, tiny, digits, tmp_path, old, new, message):
    plugin(LOSS.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        edm.train(TrainingConfig.from_dict({**tiny().to_dict(), **DESIGN}), digits, tmp_path / "run")
    assert "\n" not in str(caught.value)
