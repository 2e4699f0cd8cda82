"""Segmentation on frozen encoders: true masks, feature maps, decoder, metrics, continuity."""

import json
import tracemalloc
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from cxrstudy import encoders, pictures, study
from cxrstudy.data import synthetic
from cxrstudy.data.images import Prepared, read_image
from cxrstudy.data.manifest import ManifestError
from cxrstudy.data.sets import prepare_data
from cxrstudy.data.vocabulary import DEVICES
from cxrstudy.evaluate import continuity, decoder, segmentation
from cxrstudy.evaluate import maps as stored
from cxrstudy.evaluate import masks as measures
from cxrstudy.evaluate.decoder import mask_loss
from cxrstudy.evaluate.maps import feature_maps, load_masks
from cxrstudy.evaluate.subjects import LeakError

torch.set_num_threads(1)
ETT, NGT = DEVICES.index("endotracheal_tube"), DEVICES.index("nasogastric_tube")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    shares = {"pretrain": 0.1, "train": 0.5, "validation": 0.2, "test": 0.2}
    return prepare_data(
        study.Data(
            n_images=300, size=64, fractions=shares, out=str(tmp_path_factory.mktemp("data"))
        )
    )


def parameters(**changes):
    own = {"steps": 60, "resamples": 30, "layers": 4, "data": "runs/x/study-1"}
    own |= {"devices": ["endotracheal_tube", "nasogastric_tube"]}
    return study.validated("segment", own | changes)


def run(prepared, **changes):
    return segmentation.run(parameters(**changes), prepared)


@pytest.fixture(scope="module")
def result(prepared):
    return run(prepared)


def store_of(encoder, prepared, rows, layers, folder):
    seen = stored.encode_maps(encoder, prepared, rows, layers, home=folder)
    return stored.with_masks(seen, prepared, rows, folder / "masks")


def of(prepared, split):
    return sorted(set(prepared.manifest.loc[prepared.manifest["split"] == split, "patient_id"]))


# ---- true masks --------------------------------------------------------------------------------
def test_synthetic_masks_are_those_of_the_images(prepared):
    rows = np.array([200, 3, 3, 57])
    found, batch = load_masks(prepared, rows), synthetic.sample(rows, size=64)
    np.testing.assert_array_equal(found.masks, batch.masks)
    np.testing.assert_allclose(found.spacing, batch.pixel_spacing)
    assert found.known.all()
    inside = ((batch.tips >= 0) & (batch.tips <= 63)).all(2)
    np.testing.assert_array_equal(found.tips[inside], batch.tips[inside])
    assert np.isnan(found.tips[~inside]).all()
    assert inside.any()


@pytest.fixture
def real(tmp_path):
    """Three x-rays of 200 x 100 px and a synthetic row; the NGT has no column.

    The ETT is on the first, absent on the second, unknown on the third.
    """
    mask = np.zeros((200, 100), np.uint8)
    mask[60:130, 40:44] = 7
    Image.fromarray(mask).save(tmp_path / "ett.png")
    manifest = pd.DataFrame(
        {"image_id": list("abcd"), "patient_id": list("abcd"), "study_id": list("abcd")}
    )
    manifest["path"] = [*[str(tmp_path / "x.png")] * 3, "synthetic:study:0:5"]
    manifest["mask:endotracheal_tube"] = [str(tmp_path / "ett.png"), None, "", None]
    manifest["label:endotracheal_tube"] = [1.0, 0.0, 1.0, np.nan]
    manifest["pixel_spacing"] = 0.5
    return Prepared(manifest, np.zeros((4, 50, 50), np.uint8), {"size": 50, "show_images": False})


def test_masks_of_files_are_cut_as_the_images_are(real, tmp_path):
    found = load_masks(real, np.arange(4))
    assert found.known[:, ETT].tolist() == [True, True, False, True]
    assert found.known[:, NGT].tolist() == [False, False, False, True]
    assert found.spacing[0] == pytest.approx(1.0)  # two pixels of the file are one of ours
    assert np.isnan(found.spacing[[1, 2]]).all()
    rows, columns = np.nonzero(found.masks[0, ETT])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 39, 20, 21)
    image = np.zeros((200, 100), np.uint8)
    image[60:130, 40:44] = 255
    Image.fromarray(image).save(tmp_path / "x.png")
    np.testing.assert_array_equal(found.masks[0, ETT], read_image(tmp_path / "x.png", 50) > 127)
    np.testing.assert_array_equal(found.tips[0, ETT], measures.tips(found.masks[0, ETT]))
    assert not found.masks[1:3].any()


@pytest.mark.parametrize("damage", ["gone", "text"])
def test_a_mask_that_cannot_be_read_is_named_with_row_and_column(real, tmp_path, damage):
    path = tmp_path / "ett.png"
    path.unlink()
    if damage == "text":
        path.write_text("no image")
    with pytest.raises(ManifestError) as caught:
        load_masks(real, np.array([1, 0]))
    assert all(
        word in str(caught.value)
        for word in (str(path), "row 0", "image a", "'mask:endotracheal_tube'")
    )


# ---- feature maps ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "layers", "sides"),
    [
        ("random:cnn_mini", 9, [32, 16, 8, 4, 4]),
        ("random:cnn_mini", 2, [4, 4]),
        ("random:davit_mini", 3, [16, 8, 4]),
        ("random:hybrid_mini", 2, [8, 8]),
        ("random:vit_tiny_patch16_224", 3, [4, 4, 4]),
        ("pixels", 3, [64]),
    ],
)
def test_feature_maps_end_in_the_encoders_own_features(name, layers, sides):
    encoder = encoders.load_encoder(name, size=64)
    x = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = feature_maps(encoder, x, layers)
    assert [m.shape[-1] for m in maps] == sides
    assert all(m.shape[-2] == m.shape[-1] and len(m) == 2 for m in maps)
    if name == "pixels":
        assert torch.equal(maps[0], x)
    else:
        torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), encoder.forward_features(x))


def test_a_trunk_without_feature_maps_is_refused_by_name():
    encoder = encoders.load_encoder("random:cnn_mini", size=64)
    encoder.trunk, encoder.info = nn.Identity(), {"encoder": "mine"}
    with pytest.raises(ValueError, match="encoder mine: Identity gives no feature maps"):
        feature_maps(encoder, torch.zeros(1, 1, 64, 64), 2)


def test_the_encoder_sees_each_image_once(prepared, monkeypatch):
    seen = []
    own = stored.maps_of
    monkeypatch.setattr(
        stored, "maps_of", lambda e, p, rows, n: seen.extend(rows.tolist()) or own(e, p, rows, n)
    )
    result = run(prepared, steps=12, n_train=64)
    assert (
        len(seen)
        == len(set(seen))
        == sum(result["info"][f"{s}_images"] for s in ("train", "validation", "test"))
    )


def test_no_more_than_a_chunk_is_held_in_memory(prepared, tmp_path, monkeypatch):
    encoder, alive, own = encoders.load_encoder("random:cnn_mini", size=64), [], stored.load_masks

    def watched(prepared, rows):
        assert not any(masks() is not None for masks in alive[:-1])
        found = own(prepared, rows)
        alive.append(weakref.ref(found.masks))
        return found

    monkeypatch.setattr(stored, "load_masks", watched)
    monkeypatch.setattr(stored, "CHUNK", 4)
    store = store_of(encoder, prepared, np.arange(18), 2, tmp_path)
    assert len(alive) == 5
    np.testing.assert_array_equal(store.truth.masks, own(prepared, np.arange(18)).masks)
    maps = some_maps((16, 16, 16), n=512)
    tracemalloc.start()
    decoder.Decoder(maps, 1, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * maps[0].size / 2  # float64: of some chunks of 64, not of all 512


def test_maps_lie_below_the_runs_folder_and_are_gone_afterwards(prepared, tmp_path, monkeypatch):
    places, own = [], segmentation.encode_maps
    monkeypatch.setattr(
        segmentation, "encode_maps", lambda *a, **how: places.append(how["home"]) or own(*a, **how)
    )
    found = run(prepared, steps=1, n_train=60, n_test=20, out=str(tmp_path / "run"))
    assert [place.parent for place in places] == [tmp_path / "run"]
    assert list((tmp_path / "run").iterdir()) == []
    assert (
        found["maps"].of(found["test"]["row"].to_numpy(), 4)[0].any()
    )  # though nobody else finds them any more


@pytest.mark.parametrize("name", ["cnn_mini", "davit_mini", "hybrid_mini", "vit_tiny_patch16_224"])
def test_mapped_maps_are_those_of_the_encoder_to_half_precision(prepared, tmp_path, name):
    encoder, rows = encoders.load_encoder(f"random:{name}", size=64), np.array([9, 2, 200, 70])
    for layers in (1, 3):
        seen = stored.encode_maps(encoder, prepared, rows, layers, home=tmp_path)
        of_seen, of_encoder = (
            stored.maps_of(one, prepared, rows, layers) for one in (seen, encoder)
        )
        for found, expected in zip(
            of_seen, of_encoder, strict=True
        ):  # 11 bits: at most 2**-11 of a value is lost
            torch.testing.assert_close(found, expected, rtol=2**-10, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"layers=2, rows .* only 4 images are encoded, with layers=3"
    ):
        stored.maps_of(seen, prepared, rows, 2)
    with pytest.raises(ValueError, match="rows"):
        stored.maps_of(seen, prepared, np.array([9, 3]), 3)


def test_continuity_of_mapped_maps_is_that_of_the_encoder(prepared, tmp_path):
    encoder, rows = encoders.load_encoder("random:cnn_mini", size=64), np.arange(40)
    mapped = stored.encode_maps(encoder, prepared, rows, 4, home=tmp_path)
    again, alone = (
        continuity.continuity(one, prepared, rows, 4, resamples=20) for one in (mapped, encoder)
    )
    for found, expected in zip(again["metrics"], alone["metrics"], strict=True):
        assert found["value"] == pytest.approx(expected["value"], abs=1e-3)  # half precision


# ---- heads -------------------------------------------------------------------------------------
def some_maps(*shapes, n=3):
    rng = np.random.default_rng(0)
    return [rng.normal(3, 2, size=(n, *shape)).astype(np.float16) for shape in shapes]


@pytest.mark.parametrize(
    ("shapes", "size", "doublings"),
    [
        ([(16, 32, 32), (128, 4, 4)], 64, 0),
        ([(192, 4, 4)] * 3, 64, 3),
        ([(1, 64, 64)], 64, 0),
        ([(8, 5, 5)], 70, 3),
    ],
)
def test_the_decoder_draws_at_the_masks_size_whatever_the_grids(shapes, size, doublings):
    maps = some_maps(*shapes)
    head = decoder.Decoder(maps, 5, size)
    assert head([torch.from_numpy(m).float() for m in maps]).shape == (3, 5, size, size)
    assert head.doublings == doublings
    assert sum(w.numel() for w in head.parameters()) < 300_000


def test_a_constant_channel_does_no_harm():
    maps = some_maps((4, 8, 8))
    maps[0][:, 1] = 2.0
    head = decoder.Decoder(maps, 1, 8)
    out = head([torch.from_numpy(maps[0]).float()])
    assert torch.isfinite(out).all()


def test_what_is_not_known_has_no_part_in_the_loss():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 8, 8, generator=generator, requires_grad=True)
    masks, known = (
        torch.rand(4, 3, 8, 8, generator=generator) < 0.2,
        torch.ones(4, 3, dtype=torch.bool),
    )
    known[:2, 0] = known[:, 2] = False
    loss = mask_loss(logits, masks, known)
    loss.backward()
    assert not logits.grad[~known].any()
    assert logits.grad[known].any()
    other = masks.clone()
    other[~known] = ~other[~known]
    assert mask_loss(logits, other, known) == loss
    perfect = torch.where(masks, 30.0, -30.0)
    assert mask_loss(perfect, masks, known) < 1e-6 < mask_loss(-perfect, masks, known)


def test_thresholds_are_judged_by_the_dice_of_all_pixels(prepared, tmp_path):
    encoder = encoders.load_encoder("random:cnn_mini", size=64)
    store = store_of(encoder, prepared, np.arange(70), 3, tmp_path)
    store.truth.known[5, ETT] = False
    head = decoder.Decoder(store.maps, 2, 64)
    nn.init.normal_(head.out.weight)
    found = decoder.pooled_dice(head, store, [ETT, NGT])
    known, truth = store.truth.known[:, [ETT, NGT]], store.truth.masks[:, [ETT, NGT]]
    for k in (0, 3, 20):
        level = np.full(2, (k + 1) / decoder.BINS)
        drawn = decoder.predict(head, level, store, np.arange(70))
        for d in (0, 1):
            p, t = drawn[known[:, d], d], truth[known[:, d], d]
            assert found[k, d] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))


# ---- the protocol ------------------------------------------------------------------------------
def test_a_decoder_on_a_frozen_random_encoder_beats_drawing_nothing(result):
    table = pd.DataFrame(result["metrics"]).set_index(["label", "metric"])
    assert table.loc[("macro", "dice"), "low"] > 0.02  # nothing drawn is 0
    assert (table.xs("dice", level="metric")["value"] > 0.05).all()
    assert result["curve"]["loss"].iloc[-1] < result["curve"]["loss"].iloc[0]
    assert result["info"]["weights"] > 80_000


def test_a_run_is_the_same_again_and_another_with_another_seed(prepared):
    first, again, other = (
        run(prepared, steps=16, n_train=64, n_test=40, seed=seed) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(again["scores"], first["scores"])
    pd.testing.assert_frame_equal(again["curve"], first["curve"])
    assert json.dumps(again["metrics"]) == json.dumps(first["metrics"])  # NaN too
    assert not other["curve"].equals(first["curve"])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_leak_is_refused_before_anything_is_computed(prepared, tmp_path, split, monkeypatch):
    encoder = encoders.build_encoder("cnn_mini", 64)
    encoder.info |= {"paradigm": "clip", "n_images": 64, "samples_seen": 96}
    encoders.save_encoder(encoder, tmp_path / "encoder")
    patient = of(prepared, split)[0]
    (tmp_path / "encoder" / "patients.txt").write_text(
        "\n".join([*of(prepared, "pretrain"), patient])
    )
    monkeypatch.setattr(segmentation, "encode_maps", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(LeakError, match=patient):
        run(prepared, encoder=str(tmp_path))


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_test_patient_of_another_part_is_refused_before_anything_is_computed(
    prepared, part, monkeypatch
):
    monkeypatch.setattr(segmentation, "encode_maps", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(LeakError, match=of(prepared, "test")[0]):
        run(prepared, n_train=300, n_test=300, **{part: [part, "test"]})


def test_caps_keep_nested_subsets_of_whole_patients(prepared):
    small, large = (
        run(prepared, steps=4, n_train=60, n_test=40),
        run(prepared, steps=4, n_train=90, n_test=50),
    )
    assert (small["info"]["train_images"], small["info"]["test_images"]) == (60, 40)
    assert set(small["test"]["image_id"]) < set(large["test"]["image_id"])
    assert set(small["test"]["split"]) == {"test"}
    assert small["subject"]["patients"] != large["subject"]["patients"]


@pytest.mark.parametrize("encoder", ["pixels", "random:davit_mini"])
def test_controls_run(prepared, encoder):
    result = run(prepared, encoder=encoder, steps=10, n_train=60, n_test=40)
    assert result["subject"]["encoder"] == encoder
    assert result["subject"]["paradigm"] == "control"
    assert np.isfinite(pd.DataFrame(result["metrics"])["value"].dropna()).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder": "covariates"}, "'covariates' is not a frozen encoder"),
        ({"encoder": "supervised:cnn_mini"}, "'supervised:cnn_mini' is not a frozen encoder"),
        ({"devices": ["stent"]}, "devices: no training image shows 'stent'"),
        ({"test": ["tset"]}, r"no image with masks in splits \['tset'\]"),
        ({"within": "age > 200"}, "no row"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(prepared, changes, said):
    with pytest.raises(ValueError, match=said):
        run(prepared, steps=1, n_train=20, n_test=20, **changes)


def test_a_table_of_embeddings_is_refused_by_its_name(prepared, tmp_path):
    table = pd.DataFrame({"image_id": prepared.manifest["image_id"], "e0": 0.5, "e1": 0.25})
    table.to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match=r"mine.parquet' is not a frozen encoder"):
        run(prepared, encoder=str(tmp_path / "mine.parquet"))


def test_data_without_masks_is_refused_with_the_remedy(prepared):
    manifest = prepared.manifest.assign(path="/x.png")
    with pytest.raises(ValueError, match=r"no image has a mask: .*mask:DEVICE"):
        run(Prepared(manifest, prepared.images, prepared.info))


# ---- numbers -----------------------------------------------------------------------------------
def test_scores_are_the_mask_metrics_of_what_was_drawn(prepared, result):
    assert [case["which"] for case in result["cases"]] == ["best", "median", "worst"] * 2
    for case in result["cases"]:
        of_case = (result["scores"]["row"] == case["row"]) & (
            result["scores"]["device"] == case["device"]
        )
        row = result["scores"][of_case].iloc[0]
        truth = load_masks(prepared, np.array([case["row"]]))
        k = DEVICES.index(case["device"])
        np.testing.assert_array_equal(case["truth"], truth.masks[0, k])
        p, t = case["predicted"], case["truth"]
        assert row["image_id"] == prepared.manifest["image_id"].iloc[case["row"]]
        for name in ("dice", "iou", "cl_dice"):
            assert row[name] == pytest.approx(getattr(measures, name)(p, t), nan_ok=True)
        assert row["pieces"] == pytest.approx(measures.num_components(p, t), nan_ok=True)
        for name, mask in (("tip_error_mm", p), ("tip_floor_mm", t)):
            expected = measures.tip_error(mask, truth.tips[0, k], truth.spacing[0])
            assert row[name] == pytest.approx(expected, nan_ok=True)
        assert row["missed"] == (not p.any())
    for _, rows in result["scores"][result["scores"]["present"]].groupby("device"):
        cases = {
            case["which"]: case["dice"]
            for case in result["cases"]
            if case["device"] == rows["device"].iloc[0]
        }
        assert (cases["best"], cases["worst"]) == (rows["dice"].max(), rows["dice"].min())


def test_metrics_are_means_over_images_that_show_the_device_and_tips_medians(result):
    scores, table = result["scores"], pd.DataFrame(result["metrics"])
    assert len(scores) == 2 * len(result["test"])
    assert set(table["task"]) == {"segmentation"}
    for (label, metric), row in table.set_index(["label", "metric"]).iterrows():
        middle = "median" if metric in segmentation.MEDIANS else "mean"
        by_device = scores.groupby("device")[metric].agg(middle)
        expected = by_device.mean() if label == "macro" else by_device[label]
        assert row["value"] == pytest.approx(expected, nan_ok=True)
        assert row["low"] <= row["value"] <= row["high"] or np.isnan(row["value"])
        own = scores if label == "macro" else scores[scores["device"] == label]
        assert row["positives"] == own["present"].sum()
        assert row["n"] == own.loc[own[metric].notna(), "image_id"].nunique()
    absent = scores[~scores["present"]]
    assert absent["dice"].isna().all()
    assert absent["false_alarm"].isin([0, 1]).all()
    assert scores[scores["present"]]["false_alarm"].isna().all()


def test_a_missed_tube_has_no_tip_error_and_counts_as_missed():
    row = {
        "place": 0,
        "device": "picc",
        "present": True,
        "dice": 0.5,
        "missed": 0.0,
        "tip_error_mm": 4.0,
    }
    rows = [row | {"image_id": f"i{k}", "patient_id": f"p{k}"} for k in range(4)]
    rows[3] |= {"dice": 0.0, "missed": 1.0, "tip_error_mm": np.nan}
    table = pd.DataFrame(rows).reindex(
        columns=[*rows[0], *{*segmentation.MEANS, *segmentation.MEDIANS} - set(rows[0])]
    )
    found = pd.DataFrame(segmentation.summarise(table, resamples=50)).set_index(["label", "metric"])
    assert found.loc[("picc", "tip_error_mm"), ["value", "n"]].tolist() == [4.0, 3]
    assert found.loc[("picc", "missed"), ["value", "n"]].tolist() == [0.25, 4]
    assert found.loc[("picc", "dice"), "value"] == 0.375


# ---- continuity --------------------------------------------------------------------------------
@pytest.mark.parametrize("noise", [False, True])
def test_continuity_is_one_where_patches_tell_the_tube_and_a_half_where_they_do_not(
    prepared, monkeypatch, noise
):
    def maps_of(_, prepared, rows, layers):
        on = torch.from_numpy(load_masks(prepared, rows).masks[:, [ETT]]).float()
        on = functional.adaptive_max_pool2d(on, 16)
        generator = torch.Generator().manual_seed(int(rows.sum()))
        return [
            torch.randn(len(rows), 8, 16, 16, generator=generator)
            if noise
            else torch.cat([on, 1 - on], 1)
        ] * layers

    monkeypatch.setattr(continuity, "maps_of", maps_of)
    rows = np.arange(150)
    found = continuity.continuity(
        None, prepared, rows, 2, devices=["endotracheal_tube"], resamples=20
    )
    table = pd.DataFrame(found["metrics"]).set_index("label")
    tubes = load_masks(prepared, rows).masks[:, ETT].any((1, 2)).sum()
    assert list(table.index) == ["layer-2", "layer-1", "nearness-16"]
    assert (table["grid"] == 16).all()
    assert (table["n"] == tubes).all()
    if noise:
        assert table.loc["layer-1", "value"] == pytest.approx(0.5, abs=0.1)
    else:
        patients = found["tubes"].loc[found["tubes"]["layer-1"].notna(), "patient_id"].nunique()
        exact = [0.025 ** (1 / patients), 1, 1]  # every resample is alike
        assert table.loc["layer-1", ["low", "value", "high"]].tolist() == pytest.approx(exact)
    assert 0.5 < table.loc["nearness-16", "value"] < 1


def test_nearness_is_the_distance_to_the_tip_on_each_grid(prepared):
    encoder, rows = encoders.load_encoder("random:cnn_mini", size=64), np.arange(40)
    tubes, truth = (
        continuity.continuity(encoder, prepared, rows, 4, resamples=20)["tubes"],
        load_masks(prepared, rows),
    )
    for side in (16, 8, 4):
        for tube in tubes.iloc[::5].to_dict("records"):
            mask = truth.masks[tube["row"], DEVICES.index(tube["device"])]
            on = mask.reshape(side, 64 // side, side, 64 // side).any((1, 3))
            tip = np.array([tube["tip_row"], tube["tip_column"]]) + 0.5
            tip = np.minimum(tip * side // 64, side - 1)
            away = np.hypot(*(np.indices((side, side)) - tip[:, None, None]))
            here, there = away[on & (away > 0)], away[~on & (away > 0)]
            by_hand = (
                np.mean(np.sign(there[None] - here[:, None]) / 2 + 0.5)
                if len(here) and len(there)
                else np.nan
            )
            assert tube[f"nearness-{side}"] == pytest.approx(by_hand, nan_ok=True)


def test_continuity_counts_tubes_and_says_whose(prepared):
    encoder = encoders.load_encoder("random:cnn_mini", size=64)
    rows = np.arange(40, 90)
    found = continuity.continuity(encoder, prepared, rows, 5, resamples=20)
    tubes, truth = found["tubes"], load_masks(prepared, rows)
    expected = [
        (int(rows[n]), DEVICES[k])
        for n, k in np.argwhere(truth.masks.any((2, 3)) & ~np.isnan(truth.tips).any(2))
    ]
    assert list(zip(tubes["row"], tubes["device"], strict=True)) == expected
    assert [m["grid"] for m in found["metrics"]] == [32, 16, 8, 4, 4, 32, 16, 8, 4]
    by_label = {metric["label"]: metric for metric in found["metrics"]}
    for layer, grid in (
        ("layer-5", 32),
        ("layer-3", 8),
        ("layer-1", 4),
    ):  # on its grid a layer's control has its tubes
        for count in ("n", "positives", "grid"):
            assert by_label[layer][count] == by_label[f"nearness-{grid}"][count]
    for metric in found["metrics"]:
        assert metric["value"] == pytest.approx(tubes[metric["label"]].mean())
        assert metric["n"] == tubes[metric["label"]].notna().sum()
    for label, values in found["example"]["maps"].items():
        assert values.max() == pytest.approx(1, abs=1e-5), label  # the patch at the tip itself
    with pytest.raises(ValueError, match="none of 50 images shows the tip"):
        continuity.continuity(encoder, prepared, rows, 1, devices=["stent"])


# ---- pictures and notebook ---------------------------------------------------------------------
def test_pictures_say_what_they_show_and_withhold_what_they_must(prepared, result):
    shown = pictures.overlays(prepared, result["cases"], title="Here.")
    assert shown.alt.startswith(
        "Here. True and predicted outlines of 6 x-rays: endotracheal tube, best: Dice "
    )
    found = continuity.continuity(result["encoder"], prepared, np.arange(30), 2, resamples=20)
    heat = pictures.continuity(prepared, found["example"])
    assert "layer-1, 4 x 4 patches" in heat.alt
    assert "<img" in shown.markup and "<img" in heat.markup
    closed = Prepared(prepared.manifest, prepared.images, prepared.info | {"show_images": False})
    for kept in (
        pictures.overlays(closed, result["cases"]),
        pictures.continuity(closed, found["example"]),
    ):
        assert "<img" not in kept.markup
