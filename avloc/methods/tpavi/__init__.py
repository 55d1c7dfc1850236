"""TPAVI: AVSBench's supervised baseline for audio-visual segmentation."""

from avloc.methods.tpavi.method import TPAVI

__all__ = ["TPAVI"]
