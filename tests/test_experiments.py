"""Every YAML in experiments/: parsed strictly, tied to a row that exists, and run for a step at tiny size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from avloc.data.labels import LABEL_SPACES
from avloc.data.module import converter, named_split
from avloc.data.stored import StoreError
from avloc.evaluation.benchmarks import BENCHMARKS, benchmark
from avloc.evaluation.protocols import protocol
from avloc.experiment.command import store
from avloc.experiment.run import ExperimentCLI
from avloc.methods.seac import SeAC
from avloc.names import find_config
from avloc.report.experiments import blocks, reached, read_experiment, told_rows
from avloc.report.published import find, papers, quoted, unreached
from avloc.world import write_world
from tests.methods.tiny import avs_clip, avs_set, tiny_audioclip_files, tiny_files, tiny_sam_files

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
FILES = sorted(FOLDER.rglob("*.yaml"))
PATHS = {path.stem: path for path in FILES}
EXPERIMENTS = sorted(name for name, path in PATHS.items() if "model" in yaml.safe_load(path.read_text()))


def content(name: str) -> dict[str, Any]:
    return yaml.safe_load(PATHS[name].read_text())


def test_every_file_has_a_name_of_its_own_and_lies_where_it_belongs() -> None:
    """Experiments are called by stem, so no folder may repeat one; the top is a page of headline rows."""
    assert len(PATHS) == len(FILES)
    top = [path.stem for path in FILES if path.parent == FOLDER]
    assert {"souple_ctx4", "acl_ssl", "acl_ssl_llm", "gavs", "seac", "tvsl", "quickstart"} <= set(top)
    assert len(top) <= 15
    assert all(path.parent in (FOLDER, FOLDER / path.parent.name) for path in FILES)
    assert {path.stem for path in (FOLDER / "overlays").iterdir()} == PATHS.keys() - set(EXPERIMENTS)


@pytest.mark.parametrize("name", sorted(PATHS))
def test_it_is_found_from_any_folder_by_name_and_by_its_old_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for called in (name, f"{name}.yaml", f"experiments/{name}.yaml", str(FOLDER / f"{name}.yaml")):
        assert find_config(called) == PATHS[name]


def test_the_rows_of_the_papers_are_there() -> None:
    wanted = {
        "souple_ctx4",
        "souple_ctx8",
        "souple_ctx16",
        "souple_ctx4_40ep",
        "souple_ctx4_50ep",
        "souple_fusion",
    }
    wanted |= {"souple_ensemble", "souple_heard110", "acl_ssl", "quickstart"}
    wanted |= {"souple_ensemble_test", "souple_coop", "souple_coop_world"}
    wanted |= {"acl_ssl_equations", "souple_ctx4_equations"}
    wanted |= {f"souple_ctx4_pos{p}" for p in range(1, 6)}
    wanted |= {"gavs", "gavs_released", "gavs_world", "gavs_v1s", "gavs_v2", "gavs_vggss"}
    wanted |= {f"gavs_v3_{k}shot" for k in (0, 1, 3, 5)} | {f"gavs_{p}pct" for p in (10, 30, 50)}
    wanted |= {f"gavs_{row}_{part}" for row in ("audio_sam", "sam_fusion") for part in ("v1s", "v1m", "v2")}
    wanted |= {"tpavi_v1s", "tpavi_v1m", "tpavi_v2", "tpavi_avss", "tpavi_world"}
    wanted |= {f"{stem}_v2_{p}pct" for stem in ("gavs", "gavs_sam_fusion", "tpavi") for p in (10, 30, 50)}
    wanted |= {f"{stem}_v3_{k}shot" for stem in ("gavs", "gavs_sam_fusion", "tpavi") for k in (0, 1, 3, 5)}
    wanted |= {f"{stem}_vggss" for stem in ("gavs", "gavs_sam_fusion", "tpavi")}
    wanted |= {f"{stem}_vggss_sub_{k}shot" for stem in ("gavs", "gavs_sam_fusion", "tpavi") for k in (0, 1, 3, 5)}
    wanted |= {"acl_ssl_heard110", "acl_ssl_prior_04_00"}
    wanted |= {"seac", "seac_vit_b16", "seac_nomix", "seac_world", "seac_world_nomix"}
    wanted |= {f"seac_{k}k" for k in (50, 100, 144)} | {f"seac_n{n}" for n in (5, 10, 20, 30, 40)}
    wanted |= {f"seac_lambda_{share:02d}" for share in range(0, 11, 2)}
    wanted |= {"tvsl", "tvsl_released", "tvsl_world", "tvsl_sources", "tvsl_transfer", "tvsl_transfer_test"}
    wanted |= {f"tvsl_prompt{n}" for n in (0, 2, 4, 8, 16, 32)}
    wanted |= {f"tvsl_blocks_{part}" for part in ("none", "avc", "audio_avc", "image_avc", "all")}
    wanted |= {f"{name}_single" for name in wanted if name.startswith(("tvsl_prompt", "tvsl_blocks"))}
    wanted |= {"tvsl_world_paper", "text_query", "text_query_world"}
    of_sets = ("single", "instruments_single", "instruments", "music_solo", "music_duet")
    wanted |= {f"tvsl_{part}" for part in of_sets}
    for baseline in ("audioclip", "wav2clip"):
        wanted |= {f"{baseline}_{part}" for part in (*of_sets, "duet", "zero_shot", "world", "world_tuned")}
        wanted |= {f"{baseline}_{part}_projector" for part in ("duet", "world")}
    wanted |= {"acl_ssl_llm", "acl_ssl_llm_audio", "acl_ssl_llm_image", "quickstart_acl_llm"}
    wanted |= {f"acl_ssl_llm_lambda_{value}" for value in ("001", "01", "1", "10", "100")}
    wanted |= {f"acl_ssl{kind}_mix_{of}" for kind in ("", "_llm") for of in ("duet", "instruments")}
    wanted |= {f"clipseg_{words}{on}" for words in ("oracle", "wav2clip", "clap") for on in ("", "_world")}
    wanted |= {f"boxes_{space}{on}" for space in ("wav2clip", "audioclip", "imagebind") for on in ("", "_world")}
    wanted |= {f"gavs_world_{row}" for row in ("zero_shot", "1shot", "3shot", "5shot")}
    wanted |= {"souple_context_world", "acl_context_world"}
    wanted |= {"ezvsl", "marginnce", "slavc", "fnac", "lvs", "ssltie", "alignment"}
    wanted |= {f"{name}_ogl" for name in ("ezvsl", "marginnce", "slavc", "fnac", "alignment", "alignment_iccv")}
    wanted |= {f"{name}_heard110" for name in ("lvs", "ezvsl", "slavc", "alignment")}
    wanted |= {f"{name}_heard110_ogl" for name in ("ezvsl", "slavc", "fnac", "alignment")}
    wanted |= {f"{name}_world" for name in ("lvs", "ezvsl", "slavc", "fnac", "marginnce")}
    assert wanted <= set(EXPERIMENTS)


@pytest.mark.parametrize("shots", [1, 3, 5])
def test_the_worlds_few_shots_go_on_from_its_zero_shot_run_as_it_is(shots: int) -> None:
    zero, few = content("gavs_world_zero_shot"), content(f"gavs_world_{shots}shot")
    assert few["start_from"] == "runs/gavs_world_zero_shot/version_0/checkpoints/best.ckpt"
    assert few["data"]["train"] == f"world:train_factors_{shots}shot"
    assert zero["model"] == few["model"]
    assert (zero["data"]["val"], zero["data"]["test"]) == (few["data"]["val"], few["data"]["test"])


def test_both_methods_learn_the_shared_sounds_alike() -> None:
    souple, acl = content("souple_context_world"), content("acl_context_world")
    for settings in (souple, acl):
        del settings["model"]["class_path"]
        for own in ("context", "template"):
            settings["model"]["init_args"].pop(own, None)
    assert souple == acl


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_first_sentence_names_the_row_and_its_numbers(path: Path) -> None:
    """In one of three forms, which agree with the keys; every printed number of the row is there."""
    read = read_experiment(path)
    assert read.overlay == (path.stem not in EXPERIMENTS)
    if read.overlay:
        assert read.reproduces is None
        assert read.train is None
        assert read.test
    elif read.reproduces is not None:
        row = find(**vars(read.reproduces))
        known = re.findall(r"\d+\.\d+", read.about + " ")
        missing = [v for v in row.values if v.printed not in known]
        assert not missing, f"{path.name} does not print {missing}"


def test_every_published_row_is_reached_or_says_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of the suite's methods: by a YAML, alone or under its paper's overlay; others are quoted by name."""
    every = [read_experiment(path) for path in FILES]
    by = reached(every, {name: b.published for name, b in BENCHMARKS.items()})
    excused = {(u.paper, u.table, u.method, u.variant, u.ogl, b): u.why for u in unreached() for b in u.benchmarks}
    of_suite = [block for block in blocks() if block.row.method not in quoted()]
    lost = [block.name for block in of_suite if block.key not in by and block.key not in excused]
    assert not lost, "neither reached by a YAML nor in avloc/report/unreached.yaml:\n" + "\n".join(lost)
    both = [f"{block.name}: {by[block.key]}" for block in of_suite if block.key in by and block.key in excused]
    assert not both, "reached, so take it out of avloc/report/unreached.yaml:\n" + "\n".join(both)
    assert quoted() <= {block.row.method for block in blocks()}
    assert all(why.endswith(".") for why in excused.values())
    told = told_rows(every, {name: b.published for name, b in BENCHMARKS.items()})
    with capsys.disabled():
        print("\n" + told)
    alone, laid, left = map(int, re.findall(r"(\d+) (?:by a YAML|under an overlay|not\n)", told))
    assert (alone + laid, left) == (len(of_suite) - len(excused), len(excused))
    assert told.count("\n  not: ") == len(excused)


def test_the_overlay_of_a_paper_holds_every_set_of_its_own_method() -> None:
    """But those whose model is trained otherwise, each of which has a YAML."""
    other = {"souple": {"vggss_heard110", "vggss_unheard110"}, "acl_ssl": {"vgg_instruments", "vgg_duet"}}
    other |= {"gavs": {f"avs_v3_{k}shot" for k in (0, 1, 3, 5)}}
    for paper in papers():
        overlays = [r for p in FILES if (r := read_experiment(p)).overlay and r.sets_of == paper]
        tested = {BENCHMARKS[name].published for r in overlays for name in r.test}
        printed = {b.benchmark for b in blocks() if b.paper == paper and b.row.flags["ours"]}
        assert printed - tested == other.get(paper, set()), paper


def test_what_a_row_of_t_vsl_says_it_is() -> None:
    """Fine-tuned rows train the encoders; only the release's row is told what sounds; tables 3 and 6 have both sets."""
    both: dict[tuple[str, str], set[str]] = {}
    for name in EXPERIMENTS:
        reference, model = content(name).get("reproduces"), content(name)["model"]["init_args"]
        if name.startswith(("audioclip_", "wav2clip_")) and reference:
            assert model["tuning"] == "full", name
        if name.endswith("_projector"):
            assert model["tuning"] == "linear"
            assert reference is None
        if kind(name) == "TVSL":
            assert (model.get("sources") == "given") == (name == "tvsl_released"), name
        if kind(name) == "TVSL" and reference["table"] in ("3", "6") if reference else False:
            (tested,) = content(name)["data"]["test"]
            assert model["mixed"] == {"vgg_duet": 2, "vgg_single": 1}[tested]
            both.setdefault((reference["table"], reference["variant"]), set()).add(tested)
    assert len(both) == 5 + 6
    assert all(tested == {"vgg_duet", "vgg_single"} for tested in both.values())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_sets_are_known_and_what_it_monitors_is_logged(name: str) -> None:
    settings = content(name)
    data = settings["data"]
    chosen = settings.get("evaluator", {}).get("protocols", {})
    for tested in data.get("test", []):
        assert tested in BENCHMARKS or tested in chosen, f"{tested} is scored as an unknown set"
    for named in [data.get("train"), *data.get("val", []), *data.get("test", [])]:
        dataset = named_split(named, "")[0] if named else "world"
        assert dataset == "world" or (FOLDER.parent / "data_prep" / f"{converter(dataset)}.py").is_file(), dataset
    monitor = settings.get("checkpoint", {}).get("monitor")
    if monitor is None:
        return
    scored = next(v for v in data["val"] if monitor.startswith(f"val/{v}/"))
    protocols = benchmark(scored, chosen.get(scored)).protocols
    *under, metric = monitor.removeprefix(f"val/{scored}/").split("/")
    read = protocol("/".join(under) or protocols[0])
    assert read.name in protocols
    assert bool(under) == (read.name != protocols[0])  # the first protocol's numbers have no prefix
    assert metric in (read.headline, "ciou", "auc")


class Parsed(ExperimentCLI):
    """Reads a configuration, and stops there."""

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


PARTS = ("adapter_v", "norm1", "norm2", "adapter_tf", "audio_proj", "cue", "noise", "fusion")  # of GAVS


def learned_by_gavs(options: dict[str, Any]) -> set[str]:
    own = {
        "published": {"adapter_tf", "cue", "noise"},
        "released": {"adapter_tf"},
        "audio_sam": set(),
        "sam_fusion": {"fusion"},
    }
    encoder = set() if options["tune_v"] is None else {"adapter_v", "norm1", "norm2"}
    return own[options["design"]] | encoder | {"audio_proj"}


def learned_by_tvsl(options: dict[str, Any]) -> set[str]:
    design = options.get("design", "published")
    projectors = {"audio_proj", "visual_proj", "fusion_proj"} | {"aud_cls_proj", "img_cls_proj"}
    projectors |= {"aud_img_proj", "img_aud_proj"}
    if design == "released":  # weights of its residuals, temperature; drifting statistics
        projectors |= {"ap_w", "vp_w", "acp_w", "icp_w", "aip_w", "iap_w", "logit_scale_ml", "towers"}
    elif design != "published":
        given = design["init_args"]
        projectors -= {"aud_cls_proj"} if given.get("audio_conditioning") is False else set()
        projectors -= {"img_cls_proj"} if given.get("visual_conditioning") is False else set()
        projectors -= {"aud_img_proj", "img_aud_proj"} if given.get("correspondence") is False else set()
        projectors |= {"logit_scale_ml"} if given.get("scale_ml") else set()
    return projectors | ({"prompts"} if options.get("prompts") else set())


# What each method learns: the tensors' module in the network, of GAVS the innermost one.
EXPECTED: dict[str, Any] = {
    "ACL": lambda options: {"audio_proj", "masker_i"},
    "SOUPLE": lambda options: (
        {"audio_proj", "masker_i", "V"} | (set() if options.get("emits") == "none" else {"meta_net"})
    ),
    "GAVS": learned_by_gavs,
    "SeAC": lambda options: {"pool", "fc", "encoder", "phi_m", "phi_a", "log_tau"},
    "TVSL": learned_by_tvsl,
    "EZVSL": lambda options: {"imgnet", "audnet", "img_proj", "aud_proj"},
    "FNAC": lambda options: {"imgnet", "audnet", "img_proj", "aud_proj"},
    "SLAVC": lambda options: {"imgnet", "audnet", "img_proj", "aud_proj", "momentum"},
    "LVS": lambda options: {"imgnet", "audnet"},
    "SSLTIE": lambda options: {"imgnet", "audnet"},
    "Alignment": lambda options: {"imgnet", "audnet"},
    "DenseAV": lambda options: (
        {"image_tower", "audio_tower", "image_aligner", "audio_aligner", "audio_cls", "sim_cal"}
    ),
    "PatchSimilarity": lambda options: {"towers"} if options["tuning"] == "full" else {"seen", "heard"},
    "TPAVI": lambda options: (
        {"encoder", *(f"conv{i}" for i in (1, 2, 3, 4)), *(f"path{i}" for i in (1, 2, 3, 4))}
        | {"output_conv", *(f"tpavi_b{i}" for i in (1, 2, 3, 4))}
    ),
}


def kind(name: str) -> str:
    return content(name)["model"]["class_path"].rpartition(".")[2]


def designs() -> list[str]:
    """Of the experiments that differ in data and length of the schedule alone, one each."""
    found = {}
    for name in EXPERIMENTS:
        if kind(name) in EXPECTED and content(name)["data"].get("train"):
            given = content(name)["model"].get("init_args", {}) | {"lr_scheduler": None}
            given |= {"classes": None} if "classes" in given else {}  # those of the little set
            key = [kind(name), given, content(name)["data"].get("truth_size")]
            found.setdefault(yaml.safe_dump(key), name)
    return sorted(found.values())


@pytest.fixture(scope="module")
def reader() -> Parsed:
    """One command line, whose parser reads all YAMLs: building it takes longer than most of them."""
    read = Parsed.run(["fit", "-c", str(PATHS["quickstart"])])
    assert isinstance(read, Parsed)
    return read


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - set(designs())))
@pytest.mark.filterwarnings("ignore")
def test_the_others_are_parsed_as_they_are(name: str, reader: Parsed) -> None:
    reader.config = reader.parser.parse_args(["fit", "-c", str(PATHS[name])])
    reader.before_instantiate_classes()
    settings = reader.settings
    assert settings.experiment == name
    assert settings.data.train == content(name)["data"].get("train")
    assert content(name)["model"].get("init_args", {}).keys() <= vars(settings.model.init_args).keys()


def learned_parts(model: Any) -> set[str]:
    trained = model.trained_keys() | {k for k in model.state_dict() if k.startswith("network.momentum.")}
    assert trained <= model.learned_keys()
    if type(model).__name__ == "TVSL":  # statistics of frozen towers drift as released
        trained |= {k for k in model.learned_keys() if "running_" in k}
    keys = [k.split(".") for k in trained]
    if type(model).__name__ in ("TVSL", "PatchSimilarity"):
        return {k[1] if k[0] == "network" else k[0] for k in keys}
    assert {k[0] for k in keys} == {"network"}
    return {next(p for p in PARTS if p in k) if type(model).__name__ == "GAVS" else k[1] for k in keys}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Miniature sets under the names that the YAMLs have for them, and arguments of tiny weights by method."""
    folder = tmp_path_factory.mktemp("small")
    for split in ("train", "train_masks_heard", "single"):
        write_world(folder / "world", split, scenes=8)
    of_masks = [content(name)["data"] for name in EXPERIMENTS if content(name)["data"].get("truth")]
    for named in {d["train"] for d in of_masks} | {v for d in of_masks for v in d.get("val", [])}:
        dataset, split = named_split(named, "train")
        if dataset != "world":
            several = dataset == "avss"
            clips = [avs_clip(i, frames=10 if "v2" in dataset else 5, semantic=several) for i in range(4)]
            avs_set(folder, dataset, split, clips, per_shard=4)
    sam = tiny_sam_files(folder)
    resnet = {"layers": [1, 1, 1, 1], "channels": [4, 4, 6, 8], "stem_width": 4}
    tpavi = {"encoder": "resnet18", "encoder_options": resnet, "encoder_weights": "random", "vggish": sam["vggish"]}
    tpavi |= {"channels": 8, "head": [4, 4], "image_size": 64}
    towers = tiny_files(folder)
    points: dict[str, Any] = {"sam": sam["sam"], "points": 2, "quality": -9.0, "stability": 0.0}
    seac: dict[str, Any] = {"clip": "world:openclip", "vggish": sam["vggish"], "segmentation.sam": sam["sam"]}
    seac |= {"segmentation.boxes": {"class_path": "avloc.backbones.proposals.SamPoints", "init_args": points}}
    seac |= {"segmentation.unit": "pixel", "mixture.blur_sigma": 9}
    seac |= {"design.hidden": 32, "image_size": 64, "heatmap_size": 32, "seconds": 1.0}
    own = {"seconds": 0.5, "heatmap_size": 32}
    patches = tiny_audioclip_files(folder, [*LABEL_SPACES["world16"]], rate=16000)
    tvsl = own | {"audioclip": patches["audioclip"], "classes": "world16"}
    methods = {"ACL": towers, "SOUPLE": towers, "GAVS": sam, "SeAC": seac, "TPAVI": tpavi}
    two = {"image_weights": "random", "tower": resnet, "image_size": 64, "seconds": 1.0, "heatmap_size": 32}
    two |= {"channels_last": False, "sound_tower": "null"}
    methods |= dict.fromkeys(("EZVSL", "FNAC", "SLAVC", "LVS", "SSLTIE"), two)
    dense: dict[str, Any] = {"image_weights": "random", "audio_weights": "random", "image_lora": "null", "code_dim": 12}
    dense |= {"image_tower": {"image_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 3}, "image_size": 32}
    hubert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    hubert |= {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    methods["DenseAV"] = dense | {"audio_tower": hubert, "seconds": 1.0, "heatmap_size": 32, "frozen_steps": 0}
    methods["Alignment"] = two | {"neighbours_image": "world:resnet18", "neighbours_audio": sam["vggish"]}
    return folder, methods | {"TVSL": tvsl, "PatchSimilarity": own | patches}


def tiny_options(name: str, small: tuple[Path, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Keys of `avloc fit`, dotted, that lay tiny weights and the little sets over a YAML."""
    tiny = {} if name in ("gavs_world", "tpavi_world") else small[1][kind(name)]  # these two are small as they are
    if kind(name) == "PatchSimilarity":
        given = content(name)["model"]["init_args"]  # null is what the other towers are
        tiny = {k: v for k, v in tiny.items() if ":" not in str(v) or given.get(k)}
    if content(name)["model"]["init_args"].get("tune_v") == 9:  # of 12 blocks
        tiny = tiny | {"tune_v": 2}  # of 4
    batch = max(4, 2 * content(name)["model"]["init_args"].get("frames", 1))  # two clips of a method that takes any
    if kind(name) in ("TVSL", "PatchSimilarity"):
        batch = 8  # of more classes than a mixture has sources
    laid = {"data.root": str(small[0]), "data.num_workers": 0, "data.batch_size": batch, "data.eval_batch_size": 4}
    return laid | {f"model.init_args.{k}": None if v == "null" else v for k, v in tiny.items()}


def as_arguments(laid: dict[str, Any]) -> list[str]:
    return [f"--{key}={list(v) if isinstance(v, tuple) else 'null' if v is None else v}" for key, v in laid.items()]


def laid_over(name: str, laid: dict[str, Any], folder: Path) -> Path:
    """A YAML of the same name with some keys laid over: parsed once, where each option would have it parsed again."""
    merged = content(name)
    for key, value in laid.items():
        *parts, last = key.split(".")
        place = merged
        for part in parts:
            place[part] = place.get(part) or {}
            place = place[part]
        place[last] = list(value) if isinstance(value, tuple) else value
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(merged))
    return path


def fit(name: str, small: tuple[Path, dict[str, dict[str, Any]]], folder: Path, **more: Any) -> ExperimentCLI:
    """The YAML with tiny weights, on one process; supervised methods on the sets that it names.

    Args:
        more: keys, with two underscores for a dot.
    """
    laid = tiny_options(name, small) | {f"trainer.{k}": v for k, v in ON_ONE_PROCESS.items()}
    laid |= {key.replace("__", "."): value for key, value in more.items()}
    return ExperimentCLI.run(["fit", "-c", str(laid_over(name, laid, folder / "yaml"))])


ON_ONE_PROCESS = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
ON_ONE_PROCESS |= {"enable_progress_bar": False, "enable_model_summary": False}


@pytest.mark.parametrize("name", designs())
@pytest.mark.filterwarnings("ignore")
def test_every_design_takes_a_step(name: str, small: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path) -> None:
    more: dict[str, Any] = {"data__val": [], "data__test": ["world:single"], "start_from": None}
    if not content(name)["data"].get("truth"):
        more |= {"data__train": "world:train", "data__train_fraction": 1}
    if content(name).get("evaluator", {}).get("ogl"):
        more |= {"evaluator__ogl__weights": "random"}
    more |= {"data__stored": False}  # pictures of this set, not of the YAML's
    more |= {"trainer__max_steps": 1, "trainer__logger": False, "trainer__default_root_dir": str(tmp_path)}
    more |= {"checkpoint__dirpath": str(tmp_path), "resume__dirpath": str(tmp_path), "checkpoint__monitor": None}
    run = fit(name, small, tmp_path, **more)
    assert run.trainer.global_step == 1
    assert run.settings.experiment == name
    assert learned_parts(run.model) == EXPECTED[kind(name)](content(name)["model"]["init_args"])


@pytest.mark.filterwarnings("ignore")
def test_few_shots_go_on_from_the_zero_shot_run(
    small: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch, its validation and the model that it chooses, all where the YAMLs say; then that model as the start."""
    monkeypatch.chdir(tmp_path)
    epoch = {"trainer__limit_train_batches": 1, "trainer__limit_val_batches": 1, "trainer__max_epochs": 1}
    fit("gavs_v3_0shot", small, tmp_path, **epoch)
    start = Path(content("gavs_v3_1shot")["start_from"])
    stored = torch.load(start, weights_only=True)
    stored["state_dict"]["network.noise"] += 3
    torch.save(stored, start)
    run = fit("gavs_v3_1shot", small, tmp_path, **epoch)
    moved = run.model.network.noise - stored["state_dict"]["network.noise"]
    assert moved.abs().max() < 0.1  # a few steps at 1e-3 (jsonargparse may read 1 batch as 100 %), from 3 away
    metrics = run.trainer.callback_metrics
    assert content("gavs_v3_1shot")["checkpoint"]["monitor"] in metrics


@pytest.mark.filterwarnings("ignore")
def test_seac_trains_on_what_is_stored(
    small: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing is told with its remedy; then `avloc store`, an epoch without a picture, and its weights."""
    monkeypatch.chdir(tmp_path)
    sets: dict[str, Any] = {"data__train": "world:train", "data__val": ["world:single"], "data__test": []}
    more: dict[str, Any] = {"trainer__max_epochs": 1, "trainer__check_val_every_n_epoch": 1, "trainer__logger": False}
    more |= sets | {"trainer__default_root_dir": str(tmp_path)}
    more |= {"checkpoint__dirpath": str(tmp_path), "resume__dirpath": str(tmp_path)}
    with pytest.raises(StoreError, match="Run `avloc store -c EXPERIMENT`"):
        fit("seac_world", small, tmp_path, **more)
    laid = tiny_options("seac_world", small) | {key.replace("__", "."): value for key, value in sets.items()}
    store("seac_world", as_arguments(laid))
    monkeypatch.setattr(SeAC, "make", None)
    run = fit("seac_world", small, tmp_path, **more)
    assert run.trainer.global_step == 2
    assert "val/world:single/miou" in run.trainer.callback_metrics
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert best["global_step"] == 2
    torch.testing.assert_close(best["state_dict"]["network.log_tau"], run.model.network.log_tau.detach())
