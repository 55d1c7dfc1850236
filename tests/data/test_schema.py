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
