"""What a pre-training writes and says, and what it refuses."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from audited import photographs, placed, write_image_folder, write_webdataset
from command_line import refused_here
from folders import contents
from pretrained import lines
from safetensors.torch import load_file

from lbgen.cli import main
from lbgen.configuration import saved
from lbgen.errors import UserError
from lbgen.pretraining.config import PretrainConfig
from lbgen.pretraining.estimate import plan_pretrain
from lbgen.pretraining.run import pretrain


def test_timm_loads_the_backbone_and_knows_its_classes(whole):
    """Against timm's own readers: of a checkpoint, and of a folder as the hub has it."""
    described = json.loads((whole.folder / "config.json").read_text())
    weights = whole.folder / "backbone.safetensors"
    model = timm.create_model("test_convnext", num_classes=12, checkpoint_path=weights).eval()
    stored = load_file(weights)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert (described["architecture"], described["num_classes"]) == ("test_convnext", 12)
    (whole.folder / "model.safetensors").symlink_to(weights)
    hub = timm.create_model(f"local-dir:{whole.folder}", pretrained=True).eval()
    (whole.folder / "model.safetensors").unlink()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(hub(images), model(images))
    assert hub.pretrained_cfg["label_names"][:2] == ["boat", "bottle"]
    assert hub.pretrained_cfg["label_descriptions"]["boat"] == "boat"
    assert timm.data.resolve_data_config({}, model=hub)["input_size"] == (3, 32, 32)


def test_metrics_have_a_line_for_each_epoch(whole):
    rows = lines(whole)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 4), (2, 8), (3, 12)]
    assert all(
        row["loss"] > 0 and 0 <= row["top1"] <= row["top5"] <= 1 and row["images_per_second"] > 0 for row in rows
    )


def test_the_accuracy_is_that_of_the_saved_backbone(whole, folder):
    """Against torch and PIL on the images that the run held out, found as all that it did not train on."""
    from lbgen.pretraining.feed.catalogue import read_sources

    sources = read_sources([folder], None, None, whole.held_out)
    model = timm.create_model("test_convnext", num_classes=12, checkpoint_path=whole.folder / "backbone.safetensors")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(described(whole), model=model))
    hits = 0
    (catalogue,) = sources.validation
    for number in range(len(catalogue)):
        path = folder / catalogue.location(number).file
        with torch.no_grad():
            hits += int(model.eval()(transform(opened(path))[None]).argmax()) == names(whole).index(path.parent.name)
    assert hits / len(catalogue) == max(row["top1"] for row in lines(whole))


def described(config) -> dict:
    return json.loads((config.folder / "config.json").read_text())["pretrained_cfg"]


def names(config) -> list[str]:
    return described(config)["label_names"]


def opened(path):
    from PIL import Image

    return Image.open(path).convert("RGB")


def test_a_small_network_learns_the_micro_world(tmp_path, capsys):
    """Two categories whose colours differ, one with weights of its own, by the recipe: far above chance."""
    folder = tmp_path / "set"
    rng = np.random.default_rng(0)
    scenes = photographs(96, seed=3)
    tint = np.where(scenes.categories[:, None] % 2, [90, 0, 0], [0, 0, 90])[:, None, None]
    coloured = np.clip(scenes.images // 2 + tint + rng.integers(0, 8, scenes.images.shape), 0, 255).astype(np.uint8)
    write_image_folder(folder, dataclasses.replace(scenes, images=coloured, categories=scenes.categories % 2))
    flags = [
        "--recipe",
        "micro",
        "--epochs",
        "4",
        "--held-out",
        "0.25",
        "--image-size",
        "32",
        "--logger",
        "tensorboard",
    ]
    flags += ["--architecture", "test_convnext", "--batch-size", "12", "--output", str(tmp_path / "run")]
    main(["pretrain", str(folder), *flags])
    shown = capsys.readouterr().out
    best = max(lines(PretrainConfig(output=tmp_path / "run")), key=lambda row: (row["top1"], row["epoch"]))
    assert best["top1"] > 0.9
    wanted = (
        f"\nnext: lbgen transfer {tmp_path}/run --datasets digits\nbest epoch: {best['epoch']} of 4, top-1 "
        f"{best['top1']:.1%}; its backbone is in {tmp_path}/run/backbone.safetensors\n"
    )
    assert shown.endswith(wanted) and shown.startswith("lbgen pretrain, recipe micro\ndataset ")
    assert list((tmp_path / "run/logs").rglob("events.out.tfevents.*"))

    # Started again it says the same, and changes nothing.
    before = contents(tmp_path / "run")
    main(["pretrain", str(folder), *flags])
    assert capsys.readouterr().out.endswith(wanted) and contents(tmp_path / "run") == before


def test_several_folders_are_mixed_by_weight_and_named_in_the_record(tmp_path, config, folder, capsys):
    other = write_webdataset(tmp_path / "other" / "set", photographs(20, seed=9))
    mixed = dataclasses.replace(
        config, output=tmp_path / "run", weights=(1, 2), epochs=1, validation=str(folder), ema_decay=0.0
    )
    result = pretrain([folder, other], mixed)
    data = json.loads((mixed.folder / "config.json").read_text())["data"]
    assert [(name, each["images"], each["weight"]) for name, each in data.items()] == [
        ("set-1", 50, 1),
        ("set-2", 20, 2),
    ]
    shown = capsys.readouterr().out
    assert f"{other}: 20 images, 2 times an epoch" in shown and "1 of 8 updates" in shown
    assert result.epoch == 1 and result.top1 == lines(mixed)[0]["top1"]
    described = json.loads((mixed.folder / "config.json").read_text())
    assert described["validation_data"]["index_sha256"] == [data["set-1"]["index_sha256"]]


def test_without_validation_the_last_epoch_counts(tmp_path, config, folder):
    plain = dataclasses.replace(config, output=tmp_path / "run", held_out=0.0, epochs=2)
    result = pretrain(folder, plain)
    assert (result.epoch, result.top1) == (2, None)
    assert [row["top1"] for row in lines(plain)] == [None, None]


@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "test_vit", "model_arguments": ("patch_size=8",), "layer_decay": 0.7, "optimizer": "lamb"},
        {
            "architecture": "test_resnet",
            "loss": "binary",
            "channels_last": True,
            "precision": "bf16",
            "optimizer": "sgd",
        },
        {"architecture": "test_efficientnet", "schedule": "step", "warmup_epochs": 0, "mixup": 0.0, "cutmix": 0.0},
    ],
    ids=lambda settings: settings["architecture"],
)
def test_any_architecture_optimiser_and_loss_of_timm(tmp_path, config, folder, settings):
    """The saved folder, read by timm with the arguments that it was made with."""
    other = dataclasses.replace(config, output=tmp_path / "run", epochs=1, **settings)
    pretrain(folder, other)
    shutil.copy(other.folder / "backbone.safetensors", other.folder / "model.safetensors")
    model = timm.create_model(f"local-dir:{other.folder}", pretrained=True)
    assert model.num_classes == 12 and model(torch.rand(2, 3, 32, 32)).shape == (2, 12)


def test_a_compiled_model_gives_the_same_backbone(tmp_path, config, folder, whole, monkeypatch):
    """By the compiler's own way through the model, without the code that it would make of it."""
    calls, compiled = [], torch.nn.Module.compile

    def compile_eagerly(model):
        calls.append(model)
        compiled(model, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    other = dataclasses.replace(config, output=tmp_path / "run", compile=True)
    pretrain(folder, other)
    assert len(calls) == 1
    ours, theirs = (load_file(run.folder / "backbone.safetensors") for run in (other, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


def test_wandb_has_the_metrics(tmp_path, config, folder, monkeypatch):
    """Local files, which hold names and numbers as text."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    other = dataclasses.replace(config, output=tmp_path / "run", epochs=1, logger="wandb")
    pretrain(folder, other)
    wandb.teardown()  # its service may still be writing
    logged = b"".join(path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file())
    assert all(str(value).encode() in logged for value in lines(other)[0].values())


def test_recipe_vit_s_has_the_settings_of_its_paper():
    """DeiT's table 9 (arXiv 2012.12877), with a learning rate of 5e-4 at 512 images."""
    settings = {
        "epochs": 300, "optimizer": "adamw", "weight_decay": 0.05, "warmup_epochs": 5, "label_smoothing": 0.1,
        "drop_path": 0.1, "random_erasing": 0.25, "mixup": 0.8, "cutmix": 1.0,
        "auto_augment": "rand-m9-mstd0.5-inc1",
    }  # fmt: skip
    made = PretrainConfig.from_recipe("vit-s", output="run")
    assert {name: getattr(made, name) for name in settings} == settings
    assert made.learning_rate / made.batch_size == pytest.approx(5e-4 / 512)


def test_the_callers_random_numbers_stay_his(tmp_path, config, folder):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    pretrain(folder, dataclasses.replace(config, output=tmp_path / "run", epochs=1))
    assert torch.equal(torch.rand(3), wanted)


# ---- what it would cost ----


def test_a_plan_counts_images_and_updates_and_writes_nothing(tmp_path, config, folder, capsys):
    planned = dataclasses.replace(config, output=tmp_path / "run", epochs=7)
    estimate = plan_pretrain(folder, planned)
    shown = capsys.readouterr().out
    assert (estimate.images, estimate.validation_images, estimate.updates, estimate.epochs) == (44, 6, 28, 7)
    assert estimate.hours > 0 and estimate.bytes_of_memory > 10**7
    assert "44 images in 4 updates" in shown and re.search(r"\nspeed +[\d,]+ images/s, measured here", shown)
    assert not (tmp_path / "run").exists()


def test_the_plan_of_a_finished_run_is_nothing(whole, folder, capsys):
    before = contents(whole.folder)
    saved.save(whole, whole.folder.parent / "recipe.yaml")
    main(["pretrain", str(folder), "--recipe", str(whole.folder.parent / "recipe.yaml"), "--plan"])
    assert re.search(r"\nto make +nothing\n", capsys.readouterr().out)
    assert contents(whole.folder) == before


# ---- refusals ----


def test_flags_that_do_not_fit_are_refused_in_one_line(tmp_path, folder, capsys):
    wanted = {
        ("--weights", "1", "2"): "--weights: 2 numbers for 1 folder; give one each",
        ("--weights", "0"): "--weights 0.0: give numbers above 0",
        ("--architecture", "resnet5"): "--architecture resnet5: timm has no such architecture; did you mean resnet50, ",
        ("--architecture", "test_vit", "--model-arguments", "patchsize=4"): "timm does not make it with --image-size ",
        ("--model-arguments", "num_classes=4"): "--model-arguments num_classes=4: give NAME=VALUE, each name once and ",
        ("--optimizer", "adamx"): "--optimizer adamx: ",
        ("--auto-augment", "random"): "--auto-augment random: timm does not know this notation; ",
        ("--held-out", "1"): "--held-out 1.0: give 0 (none) or a share below 1",
        ("--precision", "fp16"): "--precision fp16 needs a GPU; choose fp32 or bf16",
        ("--validation", str(tmp_path / "none")): "none: no such folder; ",
        ("--output", str(folder / "run")): "it lies in the dataset ",
    }
    for flags, message in wanted.items():
        run = [] if "--output" in flags else ["--output", str(tmp_path / "run")]
        small = ["--recipe", "micro", "--logger", "none"]
        assert message in refused_here(capsys, "pretrain", str(folder), *small, *run, *flags), flags
        assert not (tmp_path / "run").exists(), flags


def test_another_configuration_or_other_images_are_refused(whole, folder, tmp_path):
    run = dataclasses.replace(whole, output=tmp_path / "run")
    shutil.copytree(whole.folder, run.folder)
    before = contents(run.folder)
    with pytest.raises(UserError, match=r"was made with learning_rate 0.02, this run asks for 0.1; "):
        pretrain(folder, dataclasses.replace(run, learning_rate=0.1))
    grown = write_image_folder(tmp_path / "set", photographs(51, seed=1))
    with pytest.raises(UserError, match=r"run was begun with other images \(set differ\); give the same folders"):
        pretrain(grown, run)
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "moved")
    assert pretrain(moved, run).epoch == pretrain(folder, whole).epoch
    (run.folder / "checkpoint.pt").write_bytes(b"PK no checkpoint")
    with pytest.raises(UserError, match=r"checkpoint.pt: it cannot be read; restore it, or remove it to start again"):
        pretrain(folder, run)
    assert contents(run.folder) == {**before, "checkpoint.pt": contents(run.folder)["checkpoint.pt"]}


def test_a_folder_of_another_program_is_not_written_to(tmp_path, config, folder):
    placed(tmp_path / "run", "metrics.jsonl")
    with pytest.raises(UserError, match="it holds metrics.jsonl, which lbgen pretrain did not write; choose another"):
        pretrain(folder, dataclasses.replace(config, output=tmp_path / "run"))


def test_datasets_that_cannot_be_trained_on_are_refused(tmp_path, config, folder):
    settings = dataclasses.replace(config, output=tmp_path / "run")
    one = placed(tmp_path / "one", *[f"cat/{number}.png" for number in range(9)])
    with pytest.raises(UserError, match="one: every image has the category cat; give two categories or more"):
        pretrain(one, settings)
    with pytest.raises(UserError, match="given twice; name every dataset folder once, and raise its --weights"):
        pretrain([folder, folder], settings)
    with pytest.raises(
        UserError, match="none of its 1 category is one of .*; give a folder whose categories have the sa"
    ):
        pretrain(folder, dataclasses.replace(settings, validation=str(one)))
    with pytest.raises(UserError, match="no labelled image in it"):
        pretrain([folder, placed(tmp_path / "flat", "a.png")], settings)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, config, folder):
    wild = dataclasses.replace(config, output=tmp_path / "run", learning_rate=1e6, optimizer="sgd", max_grad_norm=0.0)
    with pytest.raises(
        UserError, match=r"run, step \d+: the loss is (nan|inf); choose another --output and a lower --l"
    ):
        pretrain(folder, wild)
