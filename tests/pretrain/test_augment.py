"""Augmentation and random crops: what they change, what they keep, and by which random numbers."""

import math

import torch

from cxrstudy.pretrain.augment import augment, crops

torch.set_num_threads(1)
STILL = {"shift": 0.0, "scale": 0.0, "degrees": 0.0, "brightness": 0.0, "contrast": 0.0}
PLAIN = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0}  # crops with unchanged grey values


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- augment -----------------------------------------------------------------------------------
def test_augmentation_is_a_pure_function_of_its_generator_and_each_image_has_its_own_draw():
    x = torch.rand(1, 1, 16, 16).expand(6, -1, -1, -1).contiguous()
    one = augment(x, drawn(1))
    assert one.shape == x.shape
    assert torch.equal(one, augment(x, drawn(1)))
    assert not torch.equal(one, augment(x, drawn(2)))
    assert (torch.cdist(one.flatten(1), one.flatten(1)) + torch.eye(6) > 1e-3).all()
    torch.testing.assert_close(augment(x, drawn(1), **STILL), x)


def test_what_is_on_the_left_stays_on_the_left():
    x = torch.zeros(200, 1, 32, 32)
    x[:, :, 12:20, 4:12] = 1.0
    moved = augment(x, drawn(0), **STILL | {"shift": 0.06, "scale": 0.1, "degrees": 6.0})
    assert (moved[..., :16].sum((1, 2, 3)) > 10 * moved[..., 16:].sum((1, 2, 3))).all()
    down = (moved.sum((1, 3)) * torch.arange(32)).sum(1) / moved.sum((1, 2, 3))
    assert down.std() > 0.3  # it does move
    assert (down - 15.5).abs().max() < 6


def test_brightness_and_contrast_stay_within_what_is_said():
    x = torch.ones(500, 1, 4, 4)
    lit = augment(x, drawn(0), **STILL | {"brightness": 0.2})[:, 0, 0, 0] - 1
    stretched = augment(x, drawn(0), **STILL | {"contrast": 0.3})[:, 0, 0, 0] - 1
    for change, most in ((lit, 0.2), (stretched, 0.3)):
        assert 0.95 * most < change.abs().max() <= most + 1e-6
        assert abs(float(change.mean())) < 0.1 * most


# ---- crops -------------------------------------------------------------------------------------
def test_crops_are_a_pure_function_of_their_generator_and_whole_images_stay_what_they_are():
    x = torch.rand(3, 1, 24, 24, generator=drawn(5))
    one = crops(x, 4, (0.3, 1.0), 16, drawn())
    assert one.shape == (12, 1, 16, 16)
    assert one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, crops(x, 4, (0.3, 1.0), 16, drawn()))
    assert not torch.equal(one, crops(x, 4, (0.3, 1.0), 16, drawn(1)))
    whole = crops(x, 2, (1.0, 1.0), 24, drawn(), ratio=(1.0, 1.0), **PLAIN)
    torch.testing.assert_close(whole, torch.cat([x, x]))


def test_a_crop_shows_the_area_asked_for_upright_and_unflipped():
    line = (torch.arange(64) + 0.5) / 64
    across, down = torch.broadcast_tensors(line[None, :], line[:, None])
    x = torch.stack([across, down])[:, None]
    seen = crops(x, 2000, (0.2, 0.5), 8, drawn(), **PLAIN).view(2000, 2, 8, 8)
    wide = (seen[:, 0, 0, -1] - seen[:, 0, 0, 0]) * 8 / 7
    high = (seen[:, 1, -1, 0] - seen[:, 1, 0, 0]) * 8 / 7
    assert (wide > 0).all() and (high > 0).all()
    other = crops(x.flip(0), 2000, (0.2, 0.5), 8, drawn(), **PLAIN).view(2000, 2, 8, 8)
    assert not torch.equal(seen, other)
    assert seen[:, 0].amin() > 0.02 and seen[:, 0].amax() < 0.98


def test_grades_stay_within_what_is_said():
    x = torch.full((1, 1, 8, 8), 0.5)
    lit = crops(x, 2000, (1, 1), 8, drawn(), **PLAIN | {"brightness": 0.2})[:, 0, 0, 0] - 0.5
    bent = (
        crops(x, 2000, (1, 1), 8, drawn(), **PLAIN | {"gamma": 0.3})[:, 0, 0, 0].log()
        / math.log(0.5)
        - 1
    )
    half = torch.cat([torch.full((4, 8), 0.3), torch.full((4, 8), 0.7)])[None, None]
    stretched = crops(half, 2000, (1, 1), 8, drawn(), **PLAIN | {"contrast": 0.3}, ratio=(1, 1))
    stretched = (stretched[:, 0, -1, 0] - stretched[:, 0, 0, 0]) / 0.4 - 1
    for change, most in ((lit, 0.2), (bent, 0.3), (stretched, 0.3)):
        assert 0.95 * most < change.abs().max() <= most + 1e-5
        assert abs(float(change.mean())) < 0.1 * most


def test_shrinking_averages_and_blur_smooths_those_it_is_drawn_for():
    board = ((torch.arange(96)[:, None] + torch.arange(96)) % 2).float()[None, None]
    small = crops(board, 50, (0.9, 1.0), 32, drawn(), **PLAIN)
    assert (small - 0.5).abs().max() < 0.2  # bilinear reading alone would alias to black and white
    x = torch.zeros(1, 1, 17, 17)
    x[..., 8, 8] = 1
    plain = crops(x, 400, (1, 1), 17, drawn(), ratio=(1, 1), **PLAIN)
    blurred = crops(x, 400, (1, 1), 17, drawn(), ratio=(1, 1), blur=0.5, **PLAIN)
    torch.testing.assert_close(blurred.sum((1, 2, 3)), plain.sum((1, 2, 3)), rtol=1e-3, atol=1e-3)
    lower = blurred[:, 0, 8, 8] < 0.9
    assert 0.35 < lower.float().mean() < 0.55
    torch.testing.assert_close(blurred[:, :, 8], blurred[:, :, :, 8])
