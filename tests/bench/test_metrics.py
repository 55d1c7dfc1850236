from __future__ import annotations

from avloc.bench.metrics import TARGET, measure_metrics


def test_every_metric_agrees_with_its_loop() -> None:
    results = measure_metrics(maps=6, size=40, repeats=1)
    for result in results:
        assert result["worst"] < 1e-6, result  # type: ignore[operator]
        assert result["ratio"] == result["loop_s"] / result["avloc_s"]  # type: ignore[operator]
    swept = [r["metric"] for r in results if r["target"] == TARGET]
    assert "F-score, 255 thresholds" in swept
    assert len(results) == len({r["metric"] for r in results})
