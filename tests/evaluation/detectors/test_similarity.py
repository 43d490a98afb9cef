"""Reconstruction measures: pure ones against independent implementations, networks at tiny sizes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy
import torch
from PIL import Image
from skimage import metrics

from reca.core.artifacts import sha256_file
from reca.evaluation.detectors import inception, similarity
from reca.evaluation.tasks import reconstruction
from tests.evaluation import tiny_networks as tiny


def pixels(seed, size=(40, 56)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_psnr_and_ssim_are_scikit_images(seed):
    one = pixels(seed)
    other = np.clip(one.astype(int) + np.random.default_rng(9).integers(-30, 30, one.shape), 0, 255)
    other = other.astype(np.uint8)
    assert reconstruction.psnr(one, other) == pytest.approx(
        metrics.peak_signal_noise_ratio(one, other, data_range=255), abs=1e-9
    )
    expected = metrics.structural_similarity(
        one, other, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    assert reconstruction.ssim(one, other) == pytest.approx(expected, abs=1e-9)


def test_equal_pictures():
    assert reconstruction.psnr(pixels(0), pixels(0)) == reconstruction.CAP
    assert reconstruction.ssim(pixels(0), pixels(0)) == 1.0
    with pytest.raises(ValueError, match="smaller than the window"):
        reconstruction.ssim(pixels(0, (10, 20)), pixels(0, (10, 20)))


def test_frechet_against_the_matrix_root():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(200, 6)), random.normal(0.5, 2.0, size=(300, 6))
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert reconstruction.frechet(one, other) == pytest.approx(expected, rel=1e-9)
    assert reconstruction.frechet(one, one) == pytest.approx(0, abs=1e-9)


# ---- LPIPS ---------------------------------------------------------------------------------------
def test_lpips_is_its_formula(tmp_path):
    torch.manual_seed(0)
    model = similarity.Lpips()
    for head in model.heads:
        head.data.uniform_(0, 1)
    one, other = torch.rand(2, 1, 3, 64, 64).unbind()
    shift, scale = (torch.tensor(v)[:, None, None] for v in (model.SHIFT, model.SCALE))
    expected = 0.0
    maps = (model.net((x - shift) / scale) for x in (one, other))
    for a, b, head in zip(*maps, model.heads, strict=True):
        a, b = (torch.nn.functional.normalize(x, dim=1, eps=1e-10) for x in (a, b))
        expected += (((a - b) ** 2) * head).sum(1).mean()
    assert torch.allclose(model(one, other), expected.reshape(1), rtol=1e-4)
    assert float(model(one, one)) == 0

    trunk = {n: t for n, t in model.net.state_dict().items()} | {
        "classifier.1.weight": torch.ones(2)
    }
    heads = {f"lin{i}.model.1.weight": h.data for i, h in enumerate(model.heads)}
    paths = tmp_path / "alexnet.pth", tmp_path / "alex.pth"
    for path, tensors in zip(paths, (trunk, heads), strict=True):
        torch.save(tensors, path)
    again = similarity.Lpips.open(*((path, sha256_file(path)) for path in paths))
    alike = similarity.LpipsAlike(again)
    pictures = [Image.fromarray(pixels(i, (64, 64))) for i in (0, 1)]
    assert alike(pictures[0], pictures[0]) == 0 < alike(*pictures)
    torch.save({"lin0.model.1.weight": torch.ones(1, 3, 1, 1)}, paths[1])
    with pytest.raises(ValueError, match=r"4 missing .*1 different .*LPIPS 0\.1"):
        similarity.Lpips.open((paths[0], sha256_file(paths[0])), (paths[1], sha256_file(paths[1])))


def test_alexnet_has_the_published_names_and_sizes():
    shapes = {n: tuple(t.shape) for n, t in similarity.AlexNet().state_dict().items()}
    assert shapes["features.0.weight"] == (64, 3, 11, 11)
    assert shapes["features.10.weight"] == (256, 256, 3, 3)
    assert {n.split(".")[1] for n in shapes} == {"0", "3", "6", "8", "10"}


FAULTS = {
    "missing": lambda tensors, name: tensors.pop(name),
    "unexpected": lambda tensors, name: tensors.update({f"{name}.extra": torch.ones(1)}),
    "different": lambda tensors, name: tensors.update({name: tensors[name].flatten()[:2].clone()}),
}
KEYS = {
    "alexnet": ("features.3.weight", "fetch source alexnet"),
    "lpips": ("lin2.model.1.weight", "fetch source lpips-alex"),
    "inception": ("Mixed_5c.branch5x5_1.conv.weight", "fetch source inception-fid"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("which", KEYS)
def test_a_name_that_does_not_fit_is_named_with_file_and_remedy(tmp_path, which, fault):
    model = similarity.Lpips()
    states = {
        "alexnet": model.net.state_dict(),
        "lpips": {f"lin{i}.model.1.weight": h.data for i, h in enumerate(model.heads)},
    }
    if which == "inception":
        states[which] = inception.Inception().state_dict()
    name, remedy = KEYS[which]
    states = {file: dict(tensors) for file, tensors in states.items()}
    FAULTS[fault](states[which], name)
    files = {}
    for file, tensors in states.items():
        torch.save(tensors, tmp_path / f"{file}.pth")
        files[file] = tmp_path / f"{file}.pth", sha256_file(tmp_path / f"{file}.pth")
    with pytest.raises(ValueError) as raised:
        if which == "inception":
            inception.InceptionFeatures.open(*files[which])
        else:
            similarity.Lpips.open(files["alexnet"], files["lpips"])
    said = str(raised.value)
    assert f"{which}.pth: does not fit" in said and f"1 {fault} ({name}" in said and remedy in said
    assert "\n" not in said


# ---- cosines -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_cosines(tmp_path, kind):
    folder = getattr(tiny, f"{kind}_folder")(tmp_path / kind)
    alike = getattr(similarity.CosineAlike, kind)(folder)
    one, other = (Image.fromarray(pixels(i)) for i in (0, 1))
    assert alike(one, one) == pytest.approx(1, abs=1e-6)
    assert -1 <= alike(one, other) < 1 and alike(one, other) == pytest.approx(alike(other, one))


# ---- Inception -----------------------------------------------------------------------------------
def test_inception_has_the_published_size():
    with torch.device("meta"):
        model = inception.Inception()
    # torchvision's inception_v3 without its auxiliary head, and 1,008 classes in place of 1,000
    assert sum(p.numel() for p in model.parameters()) == 23_834_568 + 8 * 2049
    names = set(model.state_dict())
    for name in ("Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch_pool.bn.running_mean",
                 "Mixed_6e.branch7x7dbl_5.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.bias", "fc.bias"):  # fmt: skip
        assert name in names


def test_inception_features_from_a_file(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "pt_inception.pth"
    model = inception.Inception()
    torch.save({n: t for n, t in model.state_dict().items() if "num_batches" not in n}, path)
    features = inception.InceptionFeatures.open(path, sha256_file(path))
    one = features(Image.fromarray(pixels(0)))
    assert one.shape == (inception.WIDTH,) and np.isfinite(one).all()
    assert np.array_equal(one, features(Image.fromarray(pixels(0))))
    assert not np.array_equal(one, features(Image.fromarray(pixels(1))))


def test_averages_do_not_count_padding():
    ones = torch.ones(1, 1, 4, 4)
    assert torch.equal(inception._average(ones), ones)


# ---- grading -------------------------------------------------------------------------------------
def test_means_intervals_and_what_is_missing():
    rows = [{"id": f"{i:06d}", "psnr": 20.0 + i, "ssim": 0.5} for i in range(4)]
    names = [row["id"] for row in rows]
    features = (np.random.default_rng(0).normal(size=(20, 3)),) * 2
    found = reconstruction.grade(names, rows, features)
    assert (
        found.summary["psnr"] == found.summary["overall"] == 21.5 and "lpips" not in found.summary
    )
    assert (
        found.summary["rfid"] == pytest.approx(0, abs=1e-9) and found.notes["rfid_pictures"] == 20
    )
    assert found.intervals["psnr"][0] < 21.5 < found.intervals["psnr"][1]
    with pytest.raises(ValueError, match="1 missing"):
        reconstruction.grade([*names, "000009"], rows)
