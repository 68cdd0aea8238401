"""Whatever can be refused without a model is refused before torch is imported, in every verb."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lbgen.cli import VERBS
from lbgen.configuration import saved
from lbgen.evaluation.transfer.config import TransferConfig

EARLIER = Path(__file__).with_name("earlier")
PROGRAM = """
import contextlib, io, json, os, sys
from lbgen.cli import main
for case in json.load(sys.stdin):
    told, code = io.StringIO(), None
    os.environ.update(case["environment"])
    try:
        with contextlib.redirect_stderr(told):
            main(case["argv"])
    except SystemExit as ended:
        code = ended.code
    for name in case["environment"]:
        del os.environ[name]
    print("CASE", json.dumps([code, told.getvalue(), "torch" in sys.modules]))
"""
MODELS = "--generator microworld --semantics microworld --vocabulary microworld"
DATA = "--generator microworld --vocabulary microworld"
RUN = (
    "--recipe microworld --vocabulary names.txt --rank 1 --alpha 1 --lora-targets to_q --max-steps 4 --batch-size 2 "
    "--steps 3 --differentiated-steps 1 --checkpoint-every 2 --evaluate-every 0 --evaluation-images 2 "
    "--discriminator-hidden 4 --logger none --seed 5 --output run"
)
HALF = (
    "--generator microworld --vocabulary names.txt --images-per-category 3 --shard-size 4 --scheduler ddim --steps 2 "
    "--seed 3 --screen label duplicate --screen-semantics microworld --label-top-k 12 --duplicate-bits 0 --output half"
)
REFUSED = [
    ("align --vocabulary none.txt", "none.txt: "),
    (f"align {MODELS} --vocabulary same.txt --no-qualify-names", "the adversarial term needs two"),
    (f"align {MODELS} --generator none/here/at/all", "there is no such folder"),
    (
        "align --vocabulary microworld",
        "/stable-diffusion-v1-5 cannot be loaded: there is no such folder",
    ),
    (f"align {MODELS} --generator one.safetensors", "generator one.safetensors is damaged ("),
    (f"align {MODELS} --generator pickled", "pickled: unet has its weights only as diffusion_pytorch_model.bin"),
    (f"align {MODELS} --generator half-precision", "unet has its weights only as diffusion_pytorch_model.fp16"),
    (f"align {MODELS} --generator empty", "empty: the folder has no model_index.json"),
    (f"align {MODELS} --semantics empty", "--semantics empty: the folder has no config.json"),
    (f"align {MODELS} --semantics open_clip:ViT-B-32", "write open_clip:NAME/PRETRAINED"),
    (f"align {MODELS} --semantics one.safetensors", "--semantics one.safetensors is a single file; give the folder"),
    (f"align {MODELS} --quality q-align", "q-future/one-align cannot be loaded: there is no such folder"),
    (f"align {MODELS} --quality q-align:empty", "empty: the folder has no config.json"),
    (f"align {MODELS} --quality q-align:pickled/unet", "has its weights only as diffusion_pytorch_model.bin"),
    (f"align {MODELS} --quality q-align:edited/unet", "is of a model of type None; give"),
    (f"align {MODELS} --logger trackio", "--logger trackio is not installed"),
    (f"align {MODELS} --generator schnell --scheduler ddim", "cannot sample from a flow-matching network; choose"),
    (f"generate {DATA} --generator schnell --guidance-scale 3", "it was distilled to sample without guidance; give 1"),
    (f"align {MODELS} --output file/run", "is a file; choose"),
    (f"align {MODELS} --output busy", "--output busy: another run is writing there; wait for it, or choose another"),
    (f"align {RUN} --guidance-scale 3", "run was made with guidance_scale "),
    (f"align {RUN} --batch-size 3", "has 2 images per update, this run 3"),
    (f"align {RUN} --generator edited", "run was made with generator "),
    ("align --max-steps 0", "--max-steps 0: give 1 or more"),
    ("align --recipe none.yaml", "--recipe none.yaml: no such file"),
    ("pretrain none", "none: no such folder; give an image folder"),
    ("pretrain empty", "empty: no labelled image in it"),
    ("pretrain empty empty --output elsewhere", "empty: given twice; name every dataset folder once"),
    ("pretrain empty --weights 1 2", "--weights: 2 numbers for 1 folder; give one each"),
    ("recipes none.yaml", "--recipe none.yaml: no such file"),
    ("doctor --output ~nobody-of-this-name/x", "--output ~nobody-of-this-name/x: no such user"),
    (f"align {MODELS} --output busy-audit/x --recipe none.yaml --plan", "--recipe none.yaml: no such file"),
    ("generate --vocabulary none.txt", "none.txt: "),
    (f"generate {DATA} --adapter empty", "empty: no pytorch_lora_weights.safetensors in it"),
    (f"generate {DATA} --generator one.ckpt", "one.ckpt is a single file; if you trust it"),
    (f"generate {DATA} --generator ./nowhere", "generator ./nowhere cannot be loaded: there is no such folder"),
    (f"generate {DATA} --screen label --screen-semantics empty", "empty: the folder has no config.json"),
    (f"generate {DATA} --balance scene --attributes none.yaml", "none.yaml: "),
    (f"generate {DATA} --output run", "it holds config.yaml, which lbgen generate did not write"),
    (f"generate {DATA} --output busy", "--output busy: another run is writing there"),
    (f"generate {HALF} --steps 3", "half was made with steps 2, this run asks for 3"),
    ("plan --vocabulary none.txt", "none.txt: "),
    (f"plan {DATA} --generator empty", "empty: the folder has no model_index.json"),
    (f"plan {DATA} --adapter empty", "empty: no pytorch_lora_weights.safetensors in it"),
    (f"plan {HALF} --steps 3", "half was made with steps 2"),
    ("audit none", "none: no such folder"),
    ("audit empty --semantics microworld", "empty: no labelled image in it"),
    ("audit half half --semantics microworld", "given twice"),
    (
        "audit half",
        "--semantics openai/clip-vit-large-patch14 cannot be loaded: there is no such folder",
    ),
    ("audit half --semantics microworld --attributes none.yaml", "none.yaml: "),
    ("audit half --semantics empty", "--semantics empty: the folder has no config.json"),
    ("audit half --semantics microworld --features one.safetensors", "features one.safetensors is a single file"),
    ("audit half --semantics microworld --output file", "file is a file; choose a folder"),
    ("audit half --semantics microworld --output busy-audit", "another run is writing there"),
    ("audit half --semantics microworld --output page", "page/report.html: it is a folder, where a file is written"),
    ("transfer resnet50 --datasets digits --output page", "page/report.html: it is a folder, where a file is written"),
    (
        "bias --answers file --benchmarks focus --output page",
        "page: it holds bias.json, which lbgen bias did not write; choose",
    ),
    ("pretrain half --output page", "page/config.json: it is a folder, where a file is written; move it away"),
    ("reproduce --output page", "page/rows.jsonl: it is a folder, where a file is written; move it away"),
    ("transfer none/backbone", "backbone none/backbone: there is no such folder"),
    ("transfer resnet50 resnet50", "backbone resnet50: given twice"),
    ("transfer one.ckpt", "one.ckpt may run code"),
    ("transfer resnet50 --datasets digit", "--datasets digit: no such set"),
    ("transfer resnet50 --datasets cars StanfordCars", "--datasets stanfordcars: given twice"),
    ("transfer resnet50 --datasets cars dtd", "none of them is there; add digits, which always is"),
    ("transfer resnet50 --datasets digits --shots 0", "--shots 0: 0 is neither a share like 5% nor a number"),
    ("transfer resnet50 --datasets digits --shots 100%", "100% is neither a share like 5% nor a number"),
    ("transfer resnet50 --datasets digits --method none", '"none" is not one of linear, finetune'),
    (
        "transfer resnet50 --method detection --data half",
        "half: it has no folder annotations; give the folder that holds",
    ),
    ("transfer resnet50 --method segmentation --data half", "half: it has no folder images/training; give the folder"),
    (
        "transfer resnet50 --method detection --data none",
        "none: there is no such folder; give the one that holds annot",
    ),
    ("transfer resnet50 --datasets digits half --output half/x", "it lies in the dataset half"),
    (
        "transfer resnet50 --datasets digits --output transfer-foreign",
        "it holds transfer.json, which lbgen transfer did not write",
    ),
    ("transfer resnet50 --datasets digits --output transferred --seed 1", "was made with seed 0, this run asks for 1"),
    ("transfer resnet50 --datasets digits --output busy-transfer", "another run is writing there"),
    ("compare none.json", "none.json: No such file or directory; give the transfer.json"),
    ("compare labels.json", "labels.json: Expected object, got array; give the transfer.json"),
    ("compare one.json", "one.json: a single backbone cannot be compared"),
    ("bias", "--backbones empty: name one or more, or give --answers"),
    ("bias resnet50", "--data none: give the folder that holds the benchmarks"),
    ("bias resnet50 --data none", "--data none: give the folder"),
    ("bias resnet50 --data ./nowhere", "nowhere: no such folder"),
    ("bias resnet50 --data empty --benchmarks focus", "no folder focus in it with images, and annotations.db"),
    ("bias resnet50:a.pth --data empty", "a.pth may run code and is never loaded"),
    ("bias empty --data empty", "the folder has no backbone.safetensors"),
    ("bias --answers none.csv --benchmarks focus", "--answers none.csv: no such file"),
    ("bias --answers file", "name the one benchmark that the --answers are of"),
    ("bias --answers file --benchmarks focus --output run", "it holds config.yaml, which lbgen bias did not write"),
    ("verify empty", "empty: no dataset.yaml in it"),
    ("verify foreign --repair", "names generator"),
    ("quickstart --output file", "file is a file; choose"),
    ("quickstart --max-steps 0", "--max-steps 0: give 1 or more"),
    ("reproduce --output file", "file is a file; choose"),
    ("reproduce --sets base base", "name one or more, each once"),
    ("reproduce --test-images 10", "--test-images 10: give a multiple of 4"),
    ("reproduce --page none/page.md", "there is no folder none; make it, or give another page"),
    ("reproduce --vit-recipe none.yaml", "none.yaml: no such file"),
    ("reproduce --shots many", "--shots many: many is neither a share like 5% nor a number"),
    ("export microworld file/x", "choose a folder that can be written"),
    ("export adapter empty out.safetensors", "empty: no pytorch_lora_weights.safetensors in it; give the adapter"),
    ("export adapter run out --format kohya", "out: for kohya give the name of a file that ends in .safetensors"),
    ("export adapter one.safetensors out", "one.safetensors: it is a single file; give the adapter folder of a run of"),
    (f"generate {DATA} --adapter one.safetensors", "one.safetensors: it is a single file; give the adapter folder of"),
    (f"generate {DATA} --adapter nowhere/model", "--adapter nowhere/model: there is no such folder; give the adapter"),
    (f"generate {DATA} --adapter adapters/run", "it is a whole run; give "),
    (f"generate {DATA} --adapter adapters/pickled", "it has its weights only as 'pytorch_lora_weights.bin', which may"),
    (f"generate {DATA} --adapter adapters/peft", "it has 'adapter_model.safetensors', which lbgen did not write, and"),
    (f"generate {DATA} --generator pure-noise --scheduler pndm", "pndm would drop rescale_betas_zero_snr, with which"),
    (f"align {MODELS} --generator pure-noise --scheduler pndm", "pndm would drop rescale_betas_zero_snr, with which"),
    ("export merged run out", "give the folder of a finished lbgen align"),
    (f"generate {DATA} --generator edited --variant fp8", "edited has no such weights; it has none; leave it out"),
    (f"align {MODELS} --variant fp8", "--variant fp8: generator "),
    (f"plan {DATA} --generator edited --revision v1", "edited is a folder, and only the hub has revisions"),
    (f"plan {DATA} --generator nowhere/model --revision v1", "generator nowhere/model at revision v1 cannot be loaded"),
]
BUSY = ("busy/.lock", "busy-audit/cache/lock", "busy-transfer/cache/transfer.lock")
"""The lock files of runs that write there at the moment."""
ENVIRONMENTS = [
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED selects DeepSpeed, but"),
    ({"ACCELERATE_USE_FSDP": "True"}, "ACCELERATE_USE_FSDP selects FSDP, but"),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "ACCELERATE_USE_MEGATRON_LM selects Megatron-LM, but"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_sd_folder) -> Path:
    """Everything that a user can get wrong, and what an earlier version made."""
    root = tmp_path_factory.mktemp("refused")
    shutil.copytree(EARLIER, root, dirs_exist_ok=True)
    for name in ("empty", "busy", "busy-audit/cache", "busy-transfer/cache", "transfer-foreign", "transferred/results"):
        (root / name).mkdir(parents=True)
    for name in ("report.html", "bias.json", "config.json", "rows.jsonl"):
        (root / "page" / name).mkdir(parents=True)
    for name in ("file", "one.safetensors", "one.ckpt", "transfer-foreign/transfer.json"):
        (root / name).touch()
    saved.save(TransferConfig(), root / "transferred/config.yaml")
    (root / "labels.json").write_text("[]")
    (root / "one.json").write_text('{"backbones": {"resnet50": {}}}')
    (root / "same.txt").write_text("a1\tcrane\nb2\tcrane\n")
    for name, weights in (("pickled", ".bin"), ("half-precision", ".fp16.safetensors")):
        shutil.copytree(tiny_sd_folder, root / name)
        path = root / name / "unet/diffusion_pytorch_model.safetensors"
        path.rename(path.with_name(f"diffusion_pytorch_model{weights}"))
    shutil.copytree(tiny_sd_folder, root / "edited")
    for name in ("run/adapter/pytorch_lora_weights", "pickled/pytorch_lora_weights", "peft/adapter_model"):
        file = root / "adapters" / (name + (".bin" if "pickled" in name else ".safetensors"))
        file.parent.mkdir(parents=True)
        file.touch()
    shutil.copytree(tiny_sd_folder, root / "pure-noise")
    settings = root / "pure-noise/scheduler/scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"rescale_betas_zero_snr": True}))
    (root / "schnell/transformer").mkdir(parents=True)
    (root / "schnell/model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (root / "schnell/transformer/config.json").write_text('{"guidance_embeds": false}')
    shutil.copytree(EARLIER / "half", root / "foreign")
    record = root / "foreign/dataset.yaml"
    record.write_text(record.read_text().replace("generator: microworld", "generator: someone/model"))
    return root


def test_what_needs_no_model_is_refused_before_torch_is_imported(folder, tmp_path):
    """All in one process: torch is never imported, and nothing is written."""
    cases = [{"argv": line.split(), "environment": {}} for line, _ in REFUSED]
    cases += [{"argv": ["align", *MODELS.split()], "environment": given} for given, _ in ENVIRONMENTS]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    locks = [os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in BUSY]
    try:
        for lock in locks:
            fcntl.lockf(lock, fcntl.LOCK_EX)
        program = [sys.executable, "-c", PROGRAM]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
        ended = subprocess.run(
            program, input=json.dumps(cases), capture_output=True, text=True, cwd=folder, env=offline, timeout=120
        )
    finally:
        for lock in locks:
            os.close(lock)
    assert ended.returncode == 0, ended.stderr
    told = [json.loads(line.removeprefix("CASE ")) for line in ended.stdout.splitlines() if line.startswith("CASE ")]
    expected = [*REFUSED, *ENVIRONMENTS]
    wrong = [
        (what, text, code, message)
        for (code, message, imported), (what, text) in zip(told, expected, strict=True)
        if code != 2 or message.count("\n") != 1 or text not in message or imported
    ]
    assert wrong == []
    for name in BUSY:
        (folder / name).unlink()
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert {path for path in before if path.is_file() and after.get(path) != before[path]} == set()
    assert sorted(set(after) - set(before)) == []
    assert {line.split()[0] for line, _ in REFUSED} == set(VERBS)
