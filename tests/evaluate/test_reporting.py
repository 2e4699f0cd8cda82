"""Report generation: what is trained and what is not, what is generated, and no leaks."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from cxrstudy import encoders, plots, study
from cxrstudy.data.images import Prepared
from cxrstudy.data.sets import prepare_data
from cxrstudy.evaluate import protocol, reporting, textscores
from cxrstudy.evaluate.features import covariates
from cxrstudy.evaluate.language_model import open_model, train_tokenizer
from cxrstudy.evaluate.report_generator import ReportGenerator, fit_generator, validation_loss
from cxrstudy.evaluate.reporting import encode_tokens
from cxrstudy.evaluate.subjects import LeakError
from cxrstudy.weights import UnmatchedTensors

torch.set_num_threads(1)
SAID = {  # where an image is bright, and what its report says then
    0: "Cardiomegaly. No pneumothorax.",
    1: "Left pleural effusion.",
    2: "Right PICC in place. The lungs are clear.",
    3: "No acute cardiopulmonary abnormality.",
}
CORPUS = [f"{first} {second}" for first in SAID.values() for second in SAID.values()]
TINY = {
    "width": 32,
    "layers": 1,
    "vocabulary": 300,
    "resamples": 20,
    "data": "runs/x/study-1",
    "encoder": "pixels",
}


def parameters(**changes):
    return study.validated("report", TINY | {"steps": 12, "lr": 0.01} | changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    shares = {"pretrain": 0.1, "train": 0.5, "validation": 0.2, "test": 0.2}
    return prepare_data(
        study.Data(
            n_images=160, size=32, fractions=shares, out=str(tmp_path_factory.mktemp("data"))
        )
    )


@pytest.fixture(scope="module")
def clear(prepared):
    """The same patients, with images of which one quarter is bright and reports that say which."""
    images = np.random.default_rng(0).integers(0, 40, prepared.images.shape).astype(np.uint8)
    kinds = np.random.default_rng(1).integers(4, size=len(images))
    for image, kind in zip(images, kinds, strict=True):
        image[16 * (kind // 2) :][:16, 16 * (kind % 2) :][:, :16] += 200
    return Prepared(
        prepared.manifest.assign(report=[SAID[kind] for kind in kinds]), images, prepared.info
    )


@pytest.fixture(scope="module")
def learned(clear):
    return reporting.run(parameters(steps=250, batch_size=8, checks=5), clear)


@pytest.fixture(scope="module")
def features(clear):
    """Patch features and reports of some images, and an untrained generator."""
    encoder = encoders.load_encoder("random:cnn_mini", size=32)
    tokens, reports = (
        encode_tokens(encoder, clear, np.arange(24), grid=0),
        clear.manifest["report"].tolist()[:24],
    )
    torch.manual_seed(0)
    return tokens, reports, ReportGenerator(parameters(), tokens, reports)


def scores(result):
    return pd.DataFrame(result["metrics"]).set_index(["label", "metric"])["value"]


def by_hand(generator, one, p):
    """Greedy decoding without `generate`."""
    said = []
    with torch.no_grad():
        before = generator.prefix(torch.from_numpy(one[None]))
        while len(said) < p.max_tokens and (not said or said[-1] != generator.end):
            words = generator.language.get_input_embeddings()(
                torch.tensor([said], dtype=torch.long)
            )
            said.append(
                int(
                    generator.language(inputs_embeds=torch.cat([before, words], 1))
                    .logits[0, -1]
                    .argmax()
                )
            )
    return generator.tokenizer.decode(
        said, skip_special_tokens=True, clean_up_tokenization_spaces=False
    ).strip()


def without_seconds(result):
    return {key: value for key, value in result["info"].items() if not key.startswith("seconds")}


# ---- what is learned ---------------------------------------------------------------------------
def test_what_an_image_shows_is_written_and_another_image_is_not_its_report(learned):
    found, loss = scores(learned), learned["history"]["loss"]
    assert loss.iloc[-10:].mean() < 0.2 * loss.iloc[0]
    assert found["all", "f1_micro"] > 0.95
    assert found["all", "f1_side"] > 0.95
    for control in ("other patient", "most frequent report", "random report"):
        assert found[f"{control}: all", "f1_micro"] < 0.6
        assert found[f"{control}: all", "bleu_4"] < found["all", "bleu_4"]
    assert set(learned["reports"]["generated"]) == {f"FINDINGS: {said}" for said in SAID.values()}


def test_the_control_is_what_the_decoder_writes_for_another_patients_image(learned, clear):
    reports, p = learned["reports"], parameters()
    other = textscores.other_patients(reports["patient_id"].to_numpy(), p.seed)
    again = learned["generator"].generate(
        learned["tokens"][other], p
    )  # fed these images, it writes these very reports
    assert list(reports["other_patient"]) == again
    assert list(reports["generated"]) != again


def test_scores_and_table_are_of_the_test_rows_and_their_own_reports(learned, clear, tmp_path):
    test, reports = learned["test"], learned["reports"]
    assert sorted(test["image_id"]) == sorted(
        clear.manifest.loc[clear.manifest["split"] == "test", "image_id"]
    )
    assert list(reports["truth"]) == [
        f"FINDINGS: {text}" for text in clear.manifest["report"].iloc[test["row"]]
    ]
    expected = textscores.evaluate(
        reports["generated"], reports["truth"], reports["patient_id"], resamples=20
    )
    assert learned["metrics"][: len(expected)] == expected
    alone = textscores.per_report(reports["generated"], reports["truth"])
    pd.testing.assert_frame_equal(reports[list(alone)], alone)
    reports.to_parquet(tmp_path / "reports.parquet")
    kept = pd.read_parquet(tmp_path / "reports.parquet")
    again = textscores.evaluate(kept["generated"], kept["truth"], kept["patient_id"], resamples=20)
    assert again == expected


def test_the_state_of_least_validation_loss_is_kept(prepared):
    result = reporting.run(parameters(steps=120, batch_size=4, checks=12, n_train=6), prepared)
    checked = result["history"]["validation"].dropna()
    assert len(checked) == 12
    assert checked.idxmin() < checked.index[-1]  # so few reports are learned by heart
    assert result["info"]["best_step"] == checked.idxmin() + 1
    held = prepared.manifest[prepared.manifest["split"] == "validation"]
    tokens = encode_tokens(encoders.load_encoder("pixels"), prepared, held.index.to_numpy(), grid=8)
    kept = validation_loss(result["generator"], (tokens, textscores.texts(held)))
    assert kept == pytest.approx(checked.min(), rel=1e-5)


def test_a_run_is_repeated_by_its_seed_and_changed_by_another(prepared):
    first, again, other = (
        reporting.run(parameters(seed=seed, encoder="random:cnn_mini"), prepared)
        for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first["history"], again["history"])
    pd.testing.assert_frame_equal(first["reports"], again["reports"])
    pd.testing.assert_frame_equal(pd.DataFrame(first["metrics"]), pd.DataFrame(again["metrics"]))
    assert without_seconds(first) == without_seconds(again)
    assert not np.allclose(first["history"]["loss"], other["history"]["loss"])


def test_a_loss_that_is_not_finite_stops_with_what_to_do(features):
    tokens, reports, _ = features
    p = parameters(lr=1e20, grad_clip_norm=1e20, steps=20)
    with pytest.raises(FloatingPointError, match="lower lr"):
        fit_generator(ReportGenerator(p, tokens, reports), p, (tokens, reports), (tokens, reports))


@pytest.mark.parametrize("changes", [{"steps": 1}, {"steps": 5, "warmup": 0.99}])
def test_a_training_may_be_all_warm_up(features, changes):
    tokens, reports, _ = features
    p = parameters(**changes)
    history = fit_generator(
        ReportGenerator(p, tokens, reports), p, (tokens, reports), (tokens, reports)
    )
    np.testing.assert_allclose(history["lr"], p.lr * np.arange(1, p.steps + 1) / p.steps)


# ---- the loss and the search -------------------------------------------------------------------
@pytest.mark.parametrize("prompt", ["", "Describe the x-ray."])
def test_reports_of_other_lengths_beside_it_change_no_reports_loss(features, prompt):
    tokens, reports, _ = features
    generator = ReportGenerator(parameters(prompt=prompt), tokens, reports)
    ids, x = generator.ids(reports), torch.from_numpy(tokens)
    assert len({len(one) for one in ids}) > 1
    with torch.no_grad():
        total, count = generator.loss(x, ids)
        alone = [generator.loss(x[k : k + 1], [one])[0].item() for k, one in enumerate(ids)]
        one, said = x[:1], torch.tensor([ids[0]])
        words = generator.language.get_input_embeddings()(said)
        before = torch.cat([generator.prefix(one), words], 1)  # the chain rule, token by token
        steps = [
            generator.language(inputs_embeds=before[:, : before.shape[1] - k]).logits[0, -1]
            for k in range(len(ids[0]), 0, -1)
        ]
        spelled = -sum(step.log_softmax(0)[i] for step, i in zip(steps, ids[0], strict=True))
    assert count == sum(map(len, ids))
    assert total.item() == pytest.approx(sum(alone), rel=1e-4)
    assert alone[0] == pytest.approx(spelled.item(), rel=1e-4)


def test_the_prompt_stands_between_image_and_report(features):
    tokens, reports, _ = features
    generator = ReportGenerator(parameters(prompt="Describe."), tokens, reports)
    prefix, words = (
        generator.prefix(torch.from_numpy(tokens[:2])),
        generator.language.get_input_embeddings(),
    )
    said = torch.tensor(
        [generator.tokenizer.bos_token_id, *generator.tokenizer("Describe.")["input_ids"]]
    )
    assert prefix.shape == (2, tokens.shape[1] + len(said), 32)
    torch.testing.assert_close(prefix[1, tokens.shape[1] :], words(said))
    seen = generator.projector(
        (torch.from_numpy(tokens[:2]).float() - generator.mean) @ generator.axes
    )
    torch.testing.assert_close(
        prefix[:, : tokens.shape[1]] - seen, generator.position.expand(2, -1, -1)
    )


def test_features_are_turned_so_that_directions_differ_by_the_root_of_their_deviation():
    rng = np.random.default_rng(0)
    deviation = 4.0 ** np.arange(2, -2, -1)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    tokens = (rng.normal(size=(900, 6, 4)) * deviation @ turn + 7).astype(np.float32)
    generator = ReportGenerator(parameters(), tokens, ["no finding"] * len(tokens))
    seen = (
        ((torch.from_numpy(tokens) - generator.mean) @ generator.axes)
        .reshape(-1, 4)
        .double()
        .numpy()
    )
    spread = np.cov(seen.T)
    np.testing.assert_allclose(np.sqrt(np.diag(spread))[::-1][:2], deviation[:2] ** 0.5, rtol=0.05)
    np.testing.assert_allclose(spread - np.diag(np.diag(spread)), 0, atol=0.02 * spread.max())


def test_beams_find_likelier_reports_than_greed(features, clear):
    tokens, reports, _ = features
    p = parameters(steps=25, lr=0.02)
    torch.manual_seed(0)
    generator = ReportGenerator(p, tokens, reports)
    fit_generator(generator, p, (tokens, reports), (tokens, reports))
    greedy, beams = (generator.generate(tokens, parameters(num_beams=count)) for count in (1, 4))
    assert greedy != beams
    assert validation_loss(generator, (tokens, beams)) < validation_loss(
        generator, (tokens, greedy)
    )


def test_greedy_writes_the_likeliest_token_each_time_and_stops(learned):
    generator, tokens, p = learned["generator"], learned["tokens"][:3], parameters()
    assert generator.generate(tokens, p) == [by_hand(generator, one, p) for one in tokens]


@pytest.mark.filterwarnings(
    "ignore:Passing `"
)  # that a guard looks at what is written alone: it is meant to
def test_guards_against_repetition_and_length_hold(features, monkeypatch):
    tokens, _, generator = features
    decode, written = generator.tokenizer.batch_decode, []
    monkeypatch.setattr(
        generator.tokenizer,
        "batch_decode",
        lambda ids, **how: written.append(ids) or decode(ids, **how),
    )
    for guard in ({}, {"no_repeat": 2}, {"repetition_penalty": 5.0}):
        assert len(generator.generate(tokens, parameters(max_tokens=40, **guard))) == len(tokens)
    plain, guarded, penal = ([[*ids, generator.end] for ids in some.tolist()] for some in written)
    plain, guarded, penal = (
        [ids[: ids.index(generator.end)] for ids in some] for some in (plain, guarded, penal)
    )
    pairs = [
        [list(zip(ids[:-1], ids[1:], strict=True)) for ids in some] for some in (plain, guarded)
    ]
    assert any(
        len(set(said)) < len(said) for said in pairs[0]
    )  # without a guard there is something to guard against
    assert all(len(set(said)) == len(said) for said in pairs[1])
    distinct = [sum(len(set(ids)) for ids in some) / sum(map(len, some)) for some in (plain, penal)]
    assert distinct[0] < distinct[1]
    assert max(map(len, plain + guarded + penal)) == 40


def test_a_long_report_is_cut_and_has_no_end(features):
    _, reports, generator = features
    short = ReportGenerator(parameters(max_tokens=5), features[0], reports)
    for cut, whole in zip(short.ids(reports), generator.ids(reports), strict=True):
        assert cut == whole[:5]
        assert whole[-1] == generator.end
        assert generator.end not in whole[:-1]


def test_a_report_that_just_fits_is_not_counted_as_cut(clear):
    told = Prepared(
        clear.manifest.assign(report="Left pleural effusion."), clear.images, clear.info
    )
    length = reporting.run(parameters(steps=2), told)["info"]["tokens_a_report"]
    assert length == int(length)
    for most, cut in ((int(length), 0), (int(length) - 1, 1)):
        assert (
            reporting.run(parameters(steps=2, max_tokens=most), told)["info"]["reports_cut"] == cut
        )


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="<>")))
def test_any_text_comes_back_from_its_tokens(text):
    tokenizer = train_tokenizer(list(SAID.values()), 300)
    assert (
        tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    )


def test_a_tokenizer_has_the_size_asked_for_and_learns_words():
    tokenizer = train_tokenizer(CORPUS, 320)
    assert len(tokenizer) == 320
    assert len(tokenizer("pneumothorax")["input_ids"]) < len("pneumothorax")
    assert len(tokenizer("2024")["input_ids"]) == 4


# ---- patch features ----------------------------------------------------------------------------
def test_tokens_are_the_encoders_patches_in_half_precision_whatever_the_order(prepared):
    encoder, rows = encoders.load_encoder("random:cnn_mini", size=32), np.array([7, 3, 150, 3])
    tokens = encode_tokens(encoder, prepared, rows, grid=0)
    expected = encoder.forward_features(encoder.normalise(prepared.images[rows]))
    assert tokens.dtype == np.float16
    np.testing.assert_allclose(tokens, expected, rtol=2e-3, atol=1e-4)


def test_a_coarser_grid_averages_neighbours(prepared):
    encoder, rows = encoders.load_encoder("random:hybrid_mini", size=64), np.arange(3)
    fine, coarse = (
        encode_tokens(encoder, prepared, rows, grid=grid).astype(float) for grid in (0, 2)
    )
    assert fine.shape == (3, 64, 128)
    cells = fine.reshape(3, 2, 4, 2, 4, 128).mean((2, 4)).reshape(3, 4, 128)
    np.testing.assert_allclose(coarse, cells, atol=5e-3)
    np.testing.assert_array_equal(
        encode_tokens(encoder, prepared, rows, grid=9), fine.astype(np.float16)
    )


def test_many_tokens_lie_in_a_file_that_is_gone_afterwards(prepared, tmp_path, monkeypatch):
    encoder, rows = encoders.load_encoder("random:cnn_mini", size=32), np.arange(40)
    inside = encode_tokens(encoder, prepared, rows, grid=0, folder=tmp_path / "run", batch=16)
    assert not isinstance(inside, np.memmap)
    monkeypatch.setattr(reporting, "IN_MEMORY", 1000)
    mapped = encode_tokens(encoder, prepared, rows, grid=0, folder=tmp_path / "run", batch=16)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, inside)
    assert list((tmp_path / "run").iterdir()) == []


def test_features_too_large_for_half_precision_are_refused(prepared):
    encoder = encoders.load_encoder("pixels")
    encoder.std = 1e-9
    with pytest.raises(ValueError, match="half precision"):
        encode_tokens(encoder, prepared, np.arange(2), grid=0)


def test_covariates_are_one_token(prepared):
    tokens = encode_tokens(None, prepared, np.array([5, 2]), grid=8)
    np.testing.assert_allclose(tokens[:, 0], covariates(prepared.manifest)[[5, 2]], rtol=1e-3)


def test_an_encoder_runs_once_over_each_image(clear, monkeypatch):
    seen = []
    monkeypatch.setattr(
        encoders.Pixels,
        "intermediates",
        lambda self, x, layers: (
            seen.append(len(x)) or [(torch.zeros(len(x), 1, 1024), torch.zeros(len(x), 0))]
        ),
    )
    reporting.run(parameters(steps=3, n_train=20, n_validation=5, n_test=10), clear)
    assert sum(seen) == 35


# ---- who is judged -----------------------------------------------------------------------------
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_patient_who_was_pretrained_on_is_refused_before_anything_is_computed(
    prepared, tmp_path, split
):
    patient = prepared.manifest.loc[prepared.manifest["split"] == split, "patient_id"].iloc[0]
    encoder = encoders.build_encoder("cnn_mini", 32)
    encoder.info |= {"paradigm": "clip", "n_images": 64}
    encoders.save_encoder(encoder, tmp_path / "encoder")
    (tmp_path / "encoder" / "patients.txt").write_text(f"a stranger\n{patient}")
    begun = []
    with pytest.raises(LeakError, match=patient):
        reporting.run(
            parameters(encoder=str(tmp_path)),
            prepared,
            progress=lambda items: begun.append(1) or items,
        )
    assert not begun


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_test_patient_of_another_part_is_refused_before_anything_is_computed(clear, part):
    begun, patient = [], clear.manifest.loc[clear.manifest["split"] == "test", "patient_id"].min()
    p = parameters(**{part: [part, "test"]}, n_train=0, n_validation=0, n_test=0)
    with pytest.raises(LeakError, match=patient):
        reporting.run(p, clear, progress=lambda items: begun.append(1) or items)
    assert not begun


def test_caps_parts_and_queries_choose_the_rows(clear):
    reports = clear.manifest["report"].where(np.arange(160) % 3 > 0)
    some = Prepared(clear.manifest.assign(report=reports), clear.images, clear.info)
    result = reporting.run(
        parameters(n_train=30, n_validation=7, n_test=12, within="view != 'LATERAL'"), some
    )
    info = result["info"]
    assert (info["train_images"], info["validation_images"], info["test_images"]) == (30, 7, 12)
    kept = clear.manifest["view"] != "LATERAL"
    assert info["without_report"] == (reports.isna() & kept).sum()
    assert set(result["test"]["view"]) <= {"PA", "AP"}
    assert (result["test"]["row"] % 3 > 0).all()
    whole = reporting.run(parameters(n_train=0, n_test=0), clear)["info"]
    assert whole["test_images"] == (clear.manifest["split"] == "test").sum()


def test_parts_that_hold_nothing_are_refused(clear):
    with pytest.raises(
        ValueError,
        match=r"part: none of 160 images of runs/x/study-1 has a report with 'impression'",
    ):
        reporting.run(parameters(part="impression"), clear)
    with pytest.raises(ValueError, match="tset"):
        reporting.run(parameters(test=["tset"]), clear)
    one = clear.manifest.assign(
        patient_id=clear.manifest["patient_id"].where(clear.manifest["split"] != "test", "p")
    )
    with pytest.raises(ValueError, match=r"patient 'p' has \d+ of them"):
        reporting.run(parameters(), Prepared(one, clear.images, clear.info))


@pytest.mark.parametrize("kind", ["table", "supervised"])
def test_what_gives_no_patch_features_is_refused_by_its_name(clear, monkeypatch, kind):
    name = {"table": "vectors.parquet", "supervised": "supervised:cnn_mini"}[kind]
    encoder = object() if kind == "table" else encoders.load_encoder("random:cnn_mini", size=32)
    monkeypatch.setattr(protocol, "open_subject", lambda *_: (encoder, {}, set()))
    with pytest.raises(ValueError, match=f"'{name}' is not a frozen encoder"):
        reporting.run(parameters(encoder=name), clear)


def test_subjects_say_what_they_are(learned):
    subject = learned["subject"]
    assert (subject["paradigm"], subject["encoder"], subject["n_images"]) == (
        "control",
        "pixels",
        0,
    )
    assert (subject["kind"], subject["institution"], subject["data"]) == (
        "synthetic",
        "synthetic:study",
        "study-1",
    )


# ---- a language model of a folder --------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Hugging Face causal language model with a tokenizer; it sets unusual decoding."""
    where = tmp_path_factory.mktemp("models") / "tiny-llm"
    tokenizer = train_tokenizer(CORPUS, 320)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=False, **shape)
    )
    model.generation_config.do_sample, model.generation_config.temperature = True, 5.0
    model.generation_config.suppress_tokens = list(range(0, len(tokenizer), 2))
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


@pytest.mark.parametrize("rank", [0, 4])
def test_only_adapters_and_projector_learn(clear, folder, rank):
    p = parameters(language_model=str(folder), lora_rank=rank, prompt="Report:", steps=20)
    result = reporting.run(p, clear)
    generator, stored = result["generator"], load_file(folder / "model.safetensors")
    state = {
        name.replace("base_model.model.", "").replace("base_layer.", ""): v
        for name, v in generator.language.state_dict().items()
    }
    for name, tensor in stored.items():
        assert torch.equal(state[name], tensor), name
    adapters = {name: v for name, v in state.items() if "lora_" in name}
    assert len(adapters) == (
        2 * 7 * 2 if rank else 0
    )  # two matrices each for seven linear layers in two blocks
    assert all(min(v.shape) == rank for v in adapters.values())
    assert all(v.any() for name, v in adapters.items() if "lora_B" in name)  # these start at zero
    learning = {name for name, v in generator.named_parameters() if v.requires_grad}
    assert all(name.startswith(("projector.", "position")) or "lora_" in name for name in learning)
    assert result["history"]["loss"].iloc[-1] < result["history"]["loss"].iloc[0]
    assert result["info"]["trained_parameters"] < result["info"]["parameters"]
    generated = result["reports"]["generated"]  # the folder's own settings have no say in it
    assert list(generated[:3]) == [by_hand(generator, one, p) for one in result["tokens"][:3]]


def test_a_model_is_found_by_its_name_below_weights(folder, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_WEIGHTS", str(folder.parent))
    model, tokenizer = open_model("tiny-llm", 0)
    assert len(tokenizer) == model.config.vocab_size
    assert not any(v.requires_grad for v in model.parameters())


def test_a_model_that_is_not_here_says_what_to_fetch_and_where_it_goes(
    clear, tmp_path, monkeypatch
):
    monkeypatch.setenv("CXRSTUDY_WEIGHTS", str(tmp_path))
    with pytest.raises(encoders.MissingWeights) as caught:
        reporting.run(parameters(language_model="lmsys/vicuna-7b-v1.5"), clear)
    for part in (
        "'lmsys/vicuna-7b-v1.5'",
        "hf download",
        f"--local-dir {tmp_path}/vicuna-7b-v1.5",
        "config.json",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json"])
def test_a_model_that_is_not_whole_says_what_to_fetch(folder, tmp_path, lost):
    for file in folder.iterdir():
        if file.name != lost:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        encoders.MissingWeights,
        match=f"(?s)language model in {tmp_path} is not complete.*hf download",
    ):
        open_model(str(tmp_path), 4)


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_a_model_file_that_was_cut_says_what_to_fetch(folder, tmp_path, kept):
    for file in folder.iterdir():
        whole = file.read_bytes()
        (tmp_path / file.name).write_bytes(whole[:kept] if file.suffix == ".safetensors" else whole)
    with pytest.raises(
        encoders.MissingWeights,
        match=f"(?s)language model in {tmp_path} is not complete.*hf download",
    ):
        open_model(str(tmp_path), 4)


@pytest.mark.parametrize("damage", ["lost", "misshapen"])
def test_a_tensor_that_is_not_there_is_never_drawn_at_random(folder, tmp_path, damage):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    tensors = {k: v for k, v in tensors.items() if k != name} | (
        {name: torch.zeros(3, 32)} if damage == "misshapen" else {}
    )
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((UnmatchedTensors, encoders.MissingWeights)) as caught:
        open_model(str(tmp_path), 4)
    assert str(tmp_path) in str(caught.value)
    if damage == "lost":
        assert name in str(caught.value)


def test_a_tokenizer_that_knows_more_than_its_model_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    train_tokenizer(CORPUS, 330).save_pretrained(tmp_path)
    with pytest.raises(UnmatchedTensors, match="320 tokens"):
        open_model(str(tmp_path), 0)


# ---- shown -------------------------------------------------------------------------------------
def test_examples_mark_what_is_agreed_missed_and_invented_and_nothing_else():
    truth, mine = (
        "Cardiomegaly. No edema. Left effusion <2 cm.",
        "The heart is enlarged. No effusion. Right PICC.",
    )
    table = pd.DataFrame({"truth": [truth], "generated": [mine]}).join(
        textscores.per_report([mine], [truth])
    )
    page = plots.report_examples(table).markup
    marks = [
        part.split("</mark>")[0].split('title="')[-1].split('">')
        for part in page.split("<mark ")[4:]
    ]
    expected = [
        ["agreed", "Cardiomegaly"],
        ["missed", "effusion"],
        ["agreed", "heart is enlarged"],
        ["invented", "PICC"],
    ]
    assert marks == expected
    assert "&lt;2 cm" in page
    assert "F1 0.50" in page
    assert "No edema" in page


def test_examples_go_from_worst_to_best_and_are_hidden_where_they_must_be(learned):
    page = plots.report_examples(learned["reports"], count=3)
    assert page.markup.count("<tr>") == 1 + 3
    assert "3 generated reports" in page.alt
    hidden = plots.report_examples(learned["reports"], allowed=False).markup
    assert "FINDINGS" not in hidden
    assert "terms" in hidden
