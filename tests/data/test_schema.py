from __future__ import annotations

import json
from typing import Any

import pytest

from avloc.data.schema import (
    Audio,
    Frame,
    Negative,
    Provenance,
    Record,
    Sample,
    SampleError,
    SchemaError,
    Target,
    sample_key,
)


def full_record() -> Record:
    return Record(
        dataset="vggss",
        id="zpWuikVorYg_000032",
        split="test",
        tags=["heard"],
        group="g1",
        group_size=2,
        video="zpWuikVorYg",
        frames=[Frame("f0.png", 640, 360, 640, 360, 5.0, True)],
        audios=[Audio("a0.flac", "source", "zpWuikVorYg_000032", 32.0, 10.0), Audio(None, "negative")],
        targets=[
            Target(
                7,
                "elk bugling",
                "vggss221",
                0,
                0,
                [[0.4, 0.25, 0.6, 0.75]],
                [[0.4, 0.25, 0.6, 0.75]],
                annotator=[1],
            )
        ],
        map_rule="union",
        negative=Negative("mismatch", same_class=False),
        text={"image": "an elk"},
        provenance=Provenance(file="vggss.json", row=0),
    )


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(full_record().to_json()) | changes)


def test_a_record_survives_json() -> None:
    record = full_record()
    assert Record.from_json(record.to_json()) == record


def test_only_dataset_and_id_are_required_and_unknown_keys_are_ignored() -> None:
    record = Record.from_json('{"schema": 1, "dataset": "world", "id": "a", "colour": "red"}')
    assert record == Record("world", "a")
    assert record.map_rule == "none"
    assert record.sounding
    assert record.negative is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sounding": 1}, "sounding"),
        ({"map_rule": "unoin"}, "map_rule"),
        ({"group_size": 1.5}, "group_size"),
        ({"group_size": True}, "group_size"),
        ({"dataset": "VGG-SS"}, "dataset"),
        ({"frames": [{"width": 3}]}, "frames[0].member"),
        ({"frames": [{"member": "../f0.png"}]}, "f0.png"),
        ({"frames": {"member": "f0.png"}}, "frames"),
        ({"targets": [{"boxes": [[0, 0, 1.5, 1]]}]}, "targets[0].boxes"),
        ({"targets": [{"boxes": [[0, 0, 1]]}]}, "targets[0].boxes"),
        ({"targets": [{"audio": 5}]}, "targets[0].audio"),
        ({"targets": [{"boxes": [[0, 0, 1, 1]], "boxes_raw": []}]}, "targets[0].boxes_raw"),
        ({"negative": {"kind": "loud"}}, "negative.kind"),
        ({"id": ""}, "id"),
        ({"frames": [{"member": "f0.png", "semantic": "sem.f1.png"}]}, "frames[0].semantic"),
        ({"targets": [{"masks": ["m.f1.t0.png"]}]}, "targets[0].masks"),
        ({"audios": [{"member": "a0.flac", "kind": "loud"}]}, "audios[0].kind"),
    ],
)
def test_a_bad_field_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SchemaError, match=r"vggss__|VGG-SS__|record") as e:
        Record.from_json(changed(**changes))
    assert field in str(e.value)


def test_numbers_must_be_finite() -> None:
    text = full_record().to_json().replace('"t": 5.0', '"t": NaN')
    with pytest.raises(SchemaError, match=r"frames\[0\].t: expected finite float, got nan"):
        Record.from_json(text)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_an_unknown_schema_version_says_what_to_do(version: object) -> None:
    with pytest.raises(SchemaError, match=r"vggss__zpWuikVorYg_000032: schema version .* unknown.*Update avloc"):
        Record.from_json(changed(schema=version))


@pytest.mark.parametrize("text", ["{", "[]", b"\xff"])
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(SchemaError, match=r"meta.json"):
        Record.from_json(text)


def test_a_bad_record_cannot_be_written() -> None:
    record = full_record()
    record.targets[0].boxes[0][0] = float("nan")
    with pytest.raises(SchemaError, match=r"targets\[0\].boxes\[0\]\[0\]"):
        record.to_json()


def test_keys_have_no_dot_for_webdataset_to_cut_at() -> None:
    assert sample_key("avs_ms3", "ab-C_1.mp4_1") == "avs_ms3__ab-C_1-mp4_1"


def test_a_missing_member_is_named() -> None:
    with pytest.raises(SampleError, match=r"vggss__zpWuikVorYg_000032: member a0.flac is missing"):
        Sample(full_record(), {}).member("a0.flac")


def test_the_fields_that_came_later_leave_old_records_bytes_alone() -> None:
    text = full_record().to_json()
    assert '"semantic"' not in text
    assert '"kind"' not in text.replace('"kind": "mismatch"', "")
    record = full_record()
    record.negative = None
    record.frames[0].semantic = "sem.f0.png"
    record.audios[1].kind = "silence"
    assert Record.from_json(record.to_json()) == record
    assert record.members == ["f0.png", "a0.flac", "sem.f0.png"]
    assert record.conditions == ["silence"]


@pytest.mark.parametrize(
    ("audio", "negative", "says"),
    [
        (Audio("n0.flac", "source", kind="noise"), None, "audios[1].kind: only a sound of the role negative"),
        (Audio("n0.flac", "negative", kind="silence"), None, "audios[1].kind: silence has no member"),
        (Audio(None, "negative", kind="noise"), None, "audios[1].kind: silence has no member"),
        (Audio("n0.flac", "negative", kind="noise"), Negative("noise"), "a negative itself has no conditions"),
    ],
)
def test_conditions_are_negative_sounds_of_a_positive(audio: Audio, negative: Negative | None, says: str) -> None:
    record = Record("toy", "x", audios=[Audio("a0.flac"), audio], negative=negative)
    with pytest.raises(SchemaError) as e:
        record.validate()
    assert says in str(e.value)


def test_no_condition_comes_twice() -> None:
    twice = [Audio(f"n{k}.flac", "negative", kind="noise") for k in (0, 1)]
    with pytest.raises(SchemaError, match="record toy__x, field audios: no two conditions may be of one kind"):
        Record("toy", "x", audios=[Audio("a0.flac"), *twice]).validate()


def duet(n: int = 2, sounds: int | None = None, **changes: Any) -> Record:
    record = Record(
        "toy",
        "x",
        tags=["duet"],
        frames=[Frame(f"f{t}.png") for t in range(n)],
        audios=[Audio(f"a{t}.flac") for t in range(sounds or n)],
        targets=[Target(audio=t, masks=[f"m.f{t}.t{t}.png"]) for t in range(n)],
        map_rule="mask",
    )
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def test_a_duet_is_a_row_of_pictures_with_a_sound_each() -> None:
    for n in (2, 3, 4):
        record = duet(n)
        assert record.tiles == n
        assert Record.from_json(record.to_json()) == record
    assert duet(targets=[]).tiles == 2
    natural = duet(1, tags=["duet"], audios=[Audio("a0.flac", "mixture")])
    natural.validate()  # one picture of two players, one recording of both
    assert natural.tiles == 1
    assert full_record().tiles == 1


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (duet(5), "two to 4 pictures, this one has 5"),
        (duet(1, 2), "tagged duet with 1 pictures and 2 source sounds"),
        (duet(2, targets=[], audios=[Audio("a0.flac")]), "tagged duet with 2 pictures and 1 source sounds"),
        (duet(3, 2, tags=[], targets=[]), "begins with 3 source sounds"),
        (duet(tags=[], audios=[Audio("p.flac", "partner"), Audio("a0.flac"), Audio("a1.flac")]), "begins with 2"),
        (duet(targets=[Target(audio=1), Target(audio=0)]), "target t is in frame t and has audio t"),
        (duet(targets=[Target(audio=0)]), "has 2 targets"),
        (duet(targets=[Target(audio=0, masks=["m.f1.t0.png"]), Target(audio=1)]), "target 0 is in frame 0 alone"),
        (duet(frames=[Frame("f0.png", semantic="sem.f0.png"), Frame("f1.png")]), "every picture of a duet"),
    ],
)
def test_a_duet_that_is_not_whole_is_named(record: Record, says: str) -> None:
    with pytest.raises(SchemaError, match=r"^record toy__x, field ") as e:
        record.validate()
    assert says in str(e.value)
