"""T-VSL from media to numbers: official layouts, converters, the experiments' YAMLs with tiny towers; processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avloc.data.labels import LABEL_SPACES
from avloc.experiment.run import ExperimentCLI
from avloc.names import find_config
from avloc.world import write_world
from data_prep import vgg_duet, vgg_instruments_mixed, vggsound
from tests.data.clips import write_clip
from tests.data_prep import test_instruments
from tests.methods.tiny import tiny_audioclip_files

RATE = 44100
CLASSES = ("dog barking", "playing banjo", "elk bugling", "male speech, man speaking")
QUIET = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.enable_progress_bar=false"]
QUIET += ["--trainer.enable_model_summary=false", "--data.num_workers=0"]


def clip_id(i: int) -> str:
    return f"abcdefghij{i}_{i:06d}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of four classes and two pairs of them, at the rate of AudioCLIP; a mixture of instruments."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    for i in range(8):
        write_clip(source / "clips" / f"{clip_id(i)}.mp4", seconds=6, fps=5, size=(64, 48), tone=300.0 + 100 * i)
    rows = [(clip_id(i), CLASSES[i % 4]) for i in range(8)]
    (source / "vggsound.csv").write_text("".join(f'{key[:11]},{int(key[12:])},"{c}",train\n' for key, c in rows))
    common = ["--videos", str(source / "clips"), "--out", str(out), "--jobs", "1", "--rate", str(RATE)]
    more = ["--csv", str(source / "vggsound.csv"), "--classes", "vggss221", "--name", "vggsound_221"]
    assert vggsound.main([*common, *more]) == 0
    boxes = [{"file": key, "class": c, "bbox": [[0.25, 0.25, 0.75, 0.75]]} for key, c in rows[:4]]
    # class numbers are places among all 221 names
    boxes += [{"file": f"unused_{n:06d}", "class": c, "bbox": [[0, 0, 1, 1]]} for n, c in enumerate(SPACE)]
    (source / "vggss.json").write_text(json.dumps(boxes))
    pairs = [(*rows[0], *rows[1]), (*rows[2], *rows[3])]
    lines = [",".join(vgg_duet.underscored(field) for field in pair) + "\n" for pair in pairs]
    (source / "duet.csv").write_text("".join(lines))
    more = ["--boxes", str(source / "vggss.json"), "--annotations", str(source / "duet.csv")]
    assert vgg_duet.main([*common, *more]) == 0
    played = {"sample0000": "banjo", "sample0001": "cello"}
    release = test_instruments.lay_out(source / "instruments", played, [["sample0000", "banjo", "sample0001", "cello"]])
    more = ["--media", str(release / "media"), "--annotations", str(release / "mixed.csv")]
    assert vgg_instruments_mixed.main([*more, *common[2:]]) == 0
    words = [word for name in CLASSES for word in name.replace(",", "").split()]
    tiny_audioclip_files(out, [*words, "cello"], RATE)
    return out


SPACE = LABEL_SPACES["vggss221"]


def run(command: str, name: str, data: Path, folder: Path, *more: str) -> ExperimentCLI:
    """A YAML with tiny towers and batches."""
    args = [command, "-c", str(find_config(name)), *QUIET, "--trainer.devices=1", f"--data.root={data}"]
    args += [f"--model.init_args.audioclip=file:{data / 'audioclip.safetensors'}", "--model.init_args.seconds=0.5"]
    args += ["--data.batch_size=4", "--data.eval_batch_size=2", f"--trainer.default_root_dir={folder}"]
    return ExperimentCLI.run([*args, *more])


def numbers(folder: Path, name: str) -> dict:
    (found,) = folder.rglob("results.json")
    return json.loads(found.read_text())["sets"][name]


@pytest.mark.filterwarnings("ignore")
def test_the_duet_experiment_runs_on_converted_media_and_its_model_is_asked_for_unseen_classes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    fitted = run("fit", "tvsl", data, tmp_path / "fit", "--trainer.max_epochs=1", "--test_after_fit=true")
    assert fitted.trainer.callback_metrics
    found = numbers(tmp_path / "fit", "vgg_duet")
    assert (found["samples"], found["whole"]) == (2, True)
    assert 0 <= found["rows"]["model"]["multi/tvsl"]["cap"] <= 1
    (best,) = tmp_path.rglob("best.ckpt")
    state = torch.load(best, weights_only=True)
    assert state["global_step"] == 2
    assert all(k.startswith("network.") for k in state["state_dict"])

    more = ["--data.test=[vgg_instruments_mixed]", f"--ckpt_path={best}"]
    transferred = run("test", "tvsl_transfer_test", data, tmp_path / "test", *more)
    model = transferred.model
    assert "banjo" in model.names
    assert "dog barking" not in model.names
    for k, v in state["state_dict"].items():
        assert torch.equal(model.state_dict()[k], v), k
    found = numbers(tmp_path / "test", "vgg_instruments_mixed")
    assert (found["samples"], found["whole"]) == (1, True)
    assert found["rows"]["model"]["multi/noprior"]["count_accuracy"] == 1  # a map for each that is given


# ---- two processes


def learnt(processes: int, root: Path) -> dict[str, Tensor]:
    """What the world's experiment learns from 8 samples in 3 steps of them all; several processes are of their own."""
    folder = root / f"by{processes}"
    args = ["fit", "-c", str(find_config("tvsl_world")), *QUIET]
    args += [f"--data.root={root}", "--data.batch_size=8", "--data.val=[]", "--checkpoint.monitor=null"]
    args += [f"--trainer.devices={processes}", "--trainer.max_epochs=3", f"--trainer.default_root_dir={folder}"]
    args += ["--trainer.logger=false", f"--checkpoint.dirpath={folder}", f"--resume.dirpath={folder}"]
    args += ["--model.init_args.negatives=gathered", "--model.init_args.mixed=1"]
    args += ["--model.init_args.optimizer=torch.optim.SGD", "--model.init_args.optimizer.init_args.lr=0.02"]
    if processes == 1:
        ExperimentCLI.run(args)
    else:
        command = [sys.executable, "-m", "avloc.cli", *args, "--trainer.strategy=ddp"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(folder / "best.ckpt", weights_only=True)
    assert state["global_step"] == 3
    return state["state_dict"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Nothing is mixed: each process mixes its own samples."""
    write_world(tmp_path / "world", "train", scenes=8)
    one, two = learnt(1, tmp_path), learnt(2, tmp_path)
    assert one.keys() == two.keys()
    start = torch.eye(64)
    assert (one["network.audio_proj.weight"] - start).abs().max() > 1e-3  # that it learns at all
    for k, v in one.items():
        torch.testing.assert_close(two[k], v, atol=1e-5, rtol=1e-3, msg=k)
